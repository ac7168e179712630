"""The study in a browser: optuna-dashboard on a copy, on loopback.

    study at its URL --copy--> memory + notes, figures, policy --> optuna-dashboard on 127.0.0.1

The dashboard has no authentication and can delete studies; what it shows is a copy that goes away with it, so nothing that is
clicked there reaches the run. Notes and figures are made for the copy alone.
"""

import socketserver
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import save_note, save_plotly_graph_object, wsgi
from optuna_dashboard._note import save_note_with_version

from controlplane.tune.proposer import METRIC, storage

COLOURS = {"adopt": "#2a7f62", "reject": "#b3493f", "inconclusive": "#7a7a7a"}
GRAPH = {"template": "plotly_white", "height": 420, "margin": {"l": 60, "r": 20, "t": 50, "b": 50}}


@contextmanager
def served(
    url: str, name: str, *, policy: str = "", forecasts: Sequence[dict[str, Any]] = (), port: int = 0
) -> Iterator[str]:
    """The address of the dashboard on a copy of study `name`, until the context ends. `forecasts` are those of the journal, in
    order; `policy` is the text in force."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="scalerl-study-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        copied = InMemoryStorage()
        optuna.copy_study(from_study_name=name, from_storage=storage(url), to_storage=copied, to_study_name=name)
        artifacts = Path(folder) / "artifacts"
        artifacts.mkdir()
        store = FileSystemArtifactStore(str(artifacts))
        study = optuna.load_study(study_name=name, storage=copied)
        _dress(study, store, Path(folder), policy, forecasts)
        server = make_server(
            "127.0.0.1", port, wsgi(copied, artifact_store=store), server_class=_Server, handler_class=_Quiet
        )
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/dashboard/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _dress(
    study: Study, store: FileSystemArtifactStore, folder: Path, policy: str, forecasts: Sequence[dict[str, Any]]
) -> None:
    """Notes, figures and artifacts of the copy."""
    trials = study.trials
    save_note(study, study_note(study.study_name, study.user_attrs, trials))
    for trial in trials:
        _note_of_trial(study, trial)
    save_plotly_graph_object(study, effects_figure(trials), graph_object_id="effects")
    if forecasts:
        save_plotly_graph_object(study, forecast_figure(forecasts), graph_object_id="forecast")
    if policy:
        (folder / "policy.yaml").write_text(policy)
        upload_artifact(
            artifact_store=store, file_path=str(folder / "policy.yaml"), study_or_trial=study, mimetype="text/yaml"
        )


def study_note(name: str, attributes: dict[str, Any], trials: Sequence[FrozenTrial]) -> str:
    """Markdown: what the study is, and one line for each arm that was measured."""
    rows = [
        f"| {t.number} | {a.get('tunable')} | {a.get('value'):.4g} | {a['outcome']} | "
        f"{a['effect']:+.3f} ({a['low']:+.3f} to {a['high']:+.3f}) | {a['steps']} | {a['device seconds']:.0f} |"
        for t in trials
        if (a := t.user_attrs).get("effect") is not None and "low" in a
    ]
    about = "\n".join(f"- {key}: {value}" for key, value in attributes.items())
    table = (
        "| trial | tunable | value | outcome | effect (interval) | steps | device-seconds |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
        if rows
        else "No arm has been measured yet."
    )
    return (
        f"# Probes of {name}\n\nA copy, for looking: nothing that is changed here reaches the run.\n\n{about}\n\n"
        f"Parameters are relative steps, ln(value / value in force). The objective is the {METRIC}: the arm's advantage in "
        f"pass rate over the control, in units of what the control gained in the same steps. An effect is adopted only when "
        f"its anytime-valid interval lies above the policy's smallest effect.\n\n{table}\n"
    )


def _note_of_trial(study: Study, trial: FrozenTrial) -> None:
    attributes = trial.user_attrs
    limits = [f"- {key}: {value}" for key, value in attributes.items() if key.startswith("constraint: ")]
    limits += [f"- {key}: {value:+.3f} (0 or less is inside)" for key, value in trial.constraints.items()]
    body = (
        f"**{attributes.get('outcome', 'running')}** {attributes.get('reason', '')}\n\n"
        f"Constraints, applied outside Optuna:\n\n" + "\n".join(limits or ["- none recorded"])
    )
    save_note_with_version(study._storage, study._study_id, trial._trial_id, 1, body)


def effects_figure(trials: Sequence[FrozenTrial]) -> go.Figure:
    """Effect and interval of every arm that was measured, coloured by outcome."""
    figure = go.Figure()
    for outcome, colour in COLOURS.items():
        arms = [t for t in trials if t.state is TrialState.COMPLETE and t.user_attrs.get("outcome") == outcome]
        arms = [t for t in arms if "low" in t.user_attrs]
        if not arms:
            continue
        at = [t.user_attrs for t in arms]
        effect = [a["effect"] for a in at]
        figure.add_scatter(
            x=effect,
            y=[
                f"{t.number}: {a['tunable']} {a['value']:.3g} at step {a['from step']}"
                for t, a in zip(arms, at, strict=True)
            ],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [a["high"] - a["effect"] for a in at],
                "arrayminus": [a["effect"] - a["low"] for a in at],
            },
            mode="markers",
            marker={"size": 10, "color": colour},
            name=outcome,
        )
    figure.add_vline(x=0, line={"color": "#999999", "dash": "dot"})
    figure.update_layout(
        title="Effect of each arm against the control",
        xaxis_title="difference in pass rate by the end of the probe",
        **GRAPH,
    )
    return figure


def forecast_figure(forecasts: Sequence[dict[str, Any]]) -> go.Figure:
    """The newest forecast's band, and how the median at the end moved with the steps."""
    newest = forecasts[-1]
    figure = go.Figure()
    compute, low, middle, high = (list(column) for column in zip(*newest["band"], strict=True))
    figure.add_scatter(x=compute, y=high, mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=compute,
        y=low,
        mode="lines",
        fill="tonexty",
        line={"width": 0},
        name="80 % band",
        fillcolor="rgba(42,127,98,.2)",
    )
    figure.add_scatter(x=compute, y=middle, mode="lines", name="median", line={"color": COLOURS["adopt"]})
    ends = [f for f in forecasts if not f["refused"]]
    figure.add_scatter(
        x=[f["compute"] for f in ends],
        y=[f["quantiles"]["0.5"] for f in ends],
        mode="lines+markers",
        name="end of the run as forecast then",
        line={"color": "#3b6ea5", "dash": "dot"},
    )
    if newest.get("target") is not None:
        figure.add_hline(y=newest["target"], line={"color": COLOURS["reject"]}, annotation_text="target")
    figure.update_layout(title="Forecast", xaxis_title="compute", yaxis_title="held-out pass rate", **GRAPH)
    return figure


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests of a browser on this machine are nobody's news."""
