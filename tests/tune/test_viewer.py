"""The study opens in a real browser: names, notes, constraints and figures are there, and nothing leads back to the run."""

import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("optuna_dashboard", reason="the extra `tune` is not installed")

from controlplane.tune.proposer import METRIC, Proposer
from controlplane.tune.space import Axis
from controlplane.tune.viewer import served
from tests.tune.test_proposer import trial

NAME = "scalerl/tiny"
FORECAST = {
    "step": 40,
    "compute": 400.0,
    "refused": False,
    "quantiles": {"0.5": 0.8},
    "band": [[400.0, 0.70, 0.72, 0.74], [700.0, 0.74, 0.79, 0.84], [1000.0, 0.75, 0.82, 0.88]],
    "target": 0.85,
}


def some_study(url: str) -> Proposer:
    proposer = Proposer(url, NAME)
    proposer.describe(run="tiny", policy="tuning (3f2a91c0)", target="0.85 at 1000 device-seconds")
    lr, batch = Axis("lr_scale", 1.0, 0.25, 4.0), Axis("prompts_per_step", 16.0, 8.0, 24.0)
    effects = [
        (lr, 0.062, 0.021, 0.104, "adopt"),
        (lr, -0.041, -0.080, -0.004, "reject"),
        (batch, 0.008, -0.021, 0.037, "inconclusive"),
    ]
    taken: list[float] = []
    for axis, effect, low, high, outcome in effects:
        number, z, value = proposer.ask(axis, taken=taken if axis is lr else ())
        taken.append(z)
        about: dict[str, Any] = {"tunable": axis.name, "value": value, "effect": effect, "low": low, "high": high}
        about |= {"outcome": outcome, "reason": "as measured", "device_seconds": 184.0, "forecast_before": 0.07}
        proposer.tell(trial(number, z, **about))
    number, z, value = proposer.ask(lr)
    proposer.tell(
        trial(number, z, value=value, outcome="cancelled", effect=None, low=None, high=None, reason="grad_spike")
    )
    return proposer


def test_what_is_served_is_a_copy_and_deleting_it_leaves_the_study(tmp_path: Path) -> None:
    url = f"journal:{tmp_path}/study.log"
    proposer = some_study(url)
    with served(url, NAME, policy="policy: v1\n", forecasts=[FORECAST]) as address:
        base = address.removesuffix("/dashboard/")
        assert base.startswith("http://127.0.0.1:")
        [listed] = httpx.get(f"{base}/api/studies").json()["study_summaries"]
        detail = httpx.get(f"{base}/api/studies/{listed['study_id']}").json()
        assert detail["objective_names"] == [METRIC]
        assert "prompts_per_step" in detail["note"]["body"]
        assert {figure["id"] for figure in detail["plotly_graph_objects"]} == {"effects", "forecast"}
        shown = {a["key"]: a["value"] for a in detail["trials"][0]["user_attrs"]}
        assert shown["outcome"].strip('"') == "adopt"
        assert "constraint: lr_scale beyond its clamps" in shown
        assert "Constraints" in detail["trials"][0]["note"]["body"]
        assert detail["artifacts"][0]["filename"] == "policy.yaml"
        assert httpx.delete(f"{base}/api/studies/{listed['study_id']}").status_code == 204
    assert len(Proposer(url, NAME).study.trials) == len(proposer.study.trials) >= 4
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base}/api/studies")


def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed, and CI needs it")
        pytest.skip("chromium is not installed: apt-get install chromium")
    return found


def looked_at(address: str, folder: Path, picture: Path | None = None) -> str:
    """The page as a browser has it after its scripts have run."""
    what = [f"--screenshot={picture}", "--window-size=1400,1500"] if picture else ["--dump-dom"]
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    done = subprocess.run([*command, "--virtual-time-budget=20000", *what, address], capture_output=True, timeout=180)
    return done.stdout.decode()


def test_a_browser_shows_metric_note_and_constraints(tmp_path: Path) -> None:
    browser()
    url = f"journal:{tmp_path}/study.log"
    some_study(url)
    with served(url, NAME, policy="policy: v1\n", forecasts=[FORECAST]) as address:
        base = address.removesuffix("dashboard/")
        [listed] = httpx.get(f"{base}api/studies").json()["study_summaries"]
        page = f"{address}studies/{listed['study_id']}"
        picture = os.environ.get("SCALERL_STUDY_PICTURE")
        if picture:
            looked_at(page, tmp_path, Path(picture))
        front = looked_at(f"{page}/trials?numbers=0", tmp_path)
        note = looked_at(f"{page}/note", tmp_path)
    assert "constraint: lr_scale beyond its clamps" in front
    assert "adopt" in front
    assert METRIC in note
    assert "nothing that is changed here reaches the run" in note


def test_relative_steps_are_what_the_study_holds(tmp_path: Path) -> None:
    proposer = some_study(f"journal:{tmp_path}/s.log")
    assert proposer.study.trials[0].params == {"lr_scale": pytest.approx(math.log(1.5))}
