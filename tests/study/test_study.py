"""Whole studies with a trainer that pretends: what is run, kept, reported and written down."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from controlplane.contract.yamlfile import FileError
from controlplane.study.curves import AXES, read_curve
from controlplane.study.fits import RELATIVE
from controlplane.study.options import Options, options_of
from controlplane.study.runs import Job, Status, run_jobs
from controlplane.study.spec import Study, Variant, load_study
from controlplane.study.study import leave_one_out, repeat, repeated, settings_of
from tests.study.conftest import pretend
from tests.study.quick import QUICK


def study(**variants: dict[str, object]) -> Study:
    return Study(
        name="small",
        title="A small study",
        reference="ref",
        settings={"steps": 60},
        variants=tuple(Variant(name=n.replace("_", "-"), title=n, source="ours", set=s) for n, s in variants.items()),
    )


def options(out: Path, seeds: int = 1, at_once: int = 2, **overrides: str) -> Options:
    return Options(out, "tiny", overrides, range(1, seeds + 1), at_once, "device-seconds", QUICK, 0.02)


def quiet() -> Console:
    return Console(file=open("/dev/null", "w"), width=200)


def test_a_study_writes_table_results_and_plots(tmp_path: Path) -> None:
    small = study(ref={"A": 0.9, "B": 2.0}, slower={"A": 0.9, "B": 1.4}, lower={"A": 0.7, "B": 2.0})
    assert leave_one_out(small, options(tmp_path), quiet()) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row for row in results["found"]["rows"]}
    assert rows["ref"]["A"] == pytest.approx(0.9, abs=0.021)
    assert rows["slower"]["verdict"] == "equal"
    assert rows["slower"]["B_common"] < rows["ref"]["B_common"]
    assert rows["lower"]["verdict"] == "lower"
    assert rows["ref"]["completions"] == 60 * 128
    assert rows["ref"]["device_seconds"] == 30.0
    assert rows["ref"]["minutes"] == pytest.approx(0.6)
    assert [run["settings"]["name"] for run in results["runs"]] == [
        "small-ref-seed1", "small-slower-seed1", "small-lower-seed1"
    ]  # fmt: skip
    for name in ("curves.png", "curves.svg", "linear.png", "linear.svg"):
        assert (tmp_path / name).stat().st_size > 10_000
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("# A small study\n")
    assert "lower (-0.2" in text


def test_finished_runs_are_kept_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    small = study(ref={}, other={"fail": 30})
    assert leave_one_out(small, options(tmp_path), quiet()) == 1
    half = (tmp_path / "other-seed1" / "steps.jsonl").read_text()
    assert half.count("\n") == 29
    before = (tmp_path / "ref-seed1" / "steps.jsonl").read_bytes()
    assert leave_one_out(small, options(tmp_path, fail="0"), quiet()) == 0
    assert (tmp_path / "ref-seed1" / "steps.jsonl").read_bytes() == before
    whole = (tmp_path / "other-seed1" / "steps.jsonl").read_text()
    assert whole.startswith(half)
    assert [json.loads(line)["step"] for line in whole.splitlines()] == list(range(1, 61))


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    console = Console(record=True, file=open("/dev/null", "w"), width=200)  # noqa: SIM115
    assert leave_one_out(study(ref={}, broken={"fail": 3}, third={}), options(tmp_path, at_once=1), console) == 1
    said = console.export_text()
    assert "broken-seed1: failed, exit code 3: out of memory" in said
    rows = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["found"]["rows"]}
    assert rows["third"]["verdict"] == "equal"
    assert rows["broken"]["runs"] == 0
    assert "out of memory" in (tmp_path / "table.md").read_text()


def test_without_a_single_finished_run_there_is_no_table(tmp_path: Path) -> None:
    assert leave_one_out(study(ref={"fail": 1}), options(tmp_path), quiet()) == 1
    assert not (tmp_path / "table.md").exists()


def test_settings_of_the_study_yield_to_the_variant_and_both_to_the_user(tmp_path: Path) -> None:
    small = study(ref={"loss": {"kind": "grpo", "clip_high": 0.26}, "length.control": None})
    chosen = settings_of(small, small.variants[0], options(tmp_path, 1, 2, **{"loss.clip_high": "0.3"}), 7)
    assert chosen == {
        "steps": "60", "loss.kind": "grpo", "loss.clip_high": "0.3", "length.control": "null",
        "name": "small-ref-seed7", "seed": "7",
    }  # fmt: skip


def test_settings_sized_for_one_recipe_are_not_used_with_another(tmp_path: Path) -> None:
    small = study(ref={})
    other = Options(tmp_path, "large", {}, [1], 1, "steps", RELATIVE, 0.02)
    assert "steps" not in settings_of(small, small.variants[0], other, 1)


def test_never_more_runs_at_once_than_asked_and_the_first_prepares_alone(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def show(statuses: Sequence[Status]) -> None:
        seen.append([s.job.name for s in statuses if s.state == "runs"])

    jobs = _jobs(tmp_path, 4, sleep="0.01")
    statuses = run_jobs(jobs, 2, threading.Event(), show)
    assert [s.state for s in statuses] == ["done"] * 4
    assert max(map(len, seen)) == 2
    assert seen[0] == ["j0"]


def test_stopping_lets_runs_end_cleanly_and_starts_nothing_more(tmp_path: Path) -> None:
    stop = threading.Event()

    def show(statuses: Sequence[Status]) -> None:
        if (tmp_path / "j0" / "steps.jsonl").exists():
            stop.set()

    statuses = run_jobs(_jobs(tmp_path, 2, sleep="0.05"), 1, stop, show)
    assert [s.state for s in statuses] == ["stopped", "waits"]
    events = (tmp_path / "j0" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["event"] == "stop"
    assert not (tmp_path / "j1").exists()


def _jobs(root: Path, count: int, **settings: str) -> list[Job]:
    return [
        Job(
            f"j{i}",
            root / f"j{i}",
            pretend("tiny", root / f"j{i}", {"name": "n", "seed": "1", **settings}),
        )
        for i in range(count)
    ]


def test_repeats_report_the_margin_on_A(tmp_path: Path) -> None:
    assert repeat(repeated("tiny"), options(tmp_path, seeds=3, noise="0.01"), quiet()) == 0
    found = json.loads((tmp_path / "results.json").read_text())["found"]
    assert len(found["seeds"]) == 3
    fits = [seed["free"]["A"] for seed in found["seeds"]]
    mean = sum(fits) / 3
    assert found["spread"]["A"]["deviation"] == pytest.approx(max(abs(a - mean) for a in fits))
    assert "A moves by at most" in (tmp_path / "table.md").read_text()


def test_one_finished_repeat_makes_no_table(tmp_path: Path) -> None:
    assert repeat(repeated("tiny"), options(tmp_path, seeds=2, fail="4"), quiet()) == 1
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ntitle: X\nreference: a\nvariants:\n  - name: a\n    titel: A\n    source: s\n    set: {}\n",
         r"x\.yaml:6: variants\[0\]\.titel: unknown key"),
        ("name: x\ntitle: X\nreference: b\nvariants:\n  - {name: a, title: A, source: s, set: {}}\n",
         r"x\.yaml:3: reference: must be one of the variants a, not 'b'"),
        ("name: x\ntitle: X\nreference: a\nvariants:\n  - {name: a, title: A, source: s, set: {}}\n"
         "  - {name: a, title: A, source: s, set: {}}\n",
         r"x\.yaml:6: variants\[1\]\.name: the variant 'a' is there twice"),
        ("name: x\ntitle: X\nreference: a\nvariants:\n  - {name: a, title: A, set: {}}\n",
         r"x\.yaml:5: variants\[0\]\.source: this key is required"),
    ],
)  # fmt: skip
def test_a_bad_file_of_variants_is_one_line_with_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(FileError, match=message):
        load_study(str(tmp_path / "x.yaml"))


def test_a_study_or_variant_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(FileError, match=r"nope: no such study; give a file or one of loo, prevalent"):
        load_study("nope")
    with pytest.raises(FileError, match=r"'dapo' is no variant of loo; it has scalerl, no-fp32-head"):
        load_study("loo").only("dapo")


def test_the_reference_is_kept_whatever_variants_are_chosen() -> None:
    assert [v.name for v in load_study("loo").only("dapo-loss").variants] == ["scalerl", "dapo-loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "hours"}, "--axis: must be one of device-seconds"),
        ({"override": ["seed=3"]}, "--set seed: every run of a study has its own"),
        ({"override": ["seed"]}, "give KEY=VALUE"),
        ({"paper_grid": True, "drop": 0.1}, "--paper-grid: brings its own axis and cut"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    given: dict[str, object] = {
        "override": None, "steps": 0, "seeds": 1, "jobs": 1, "axis": "steps", "drop": 0.0, "paper_grid": False, "margin": 0.02,
        **({} if "paper_grid" not in change else {"axis": "device-seconds"}), **change,
    }  # fmt: skip
    with pytest.raises(FileError, match=message):
        options_of(tmp_path, "tiny", **given)  # type: ignore[arg-type]


def test_a_curve_is_read_on_every_axis(tmp_path: Path) -> None:
    (job,) = _jobs(tmp_path, 1, steps="20")
    run_jobs([job], 1, threading.Event(), lambda _: None)
    ends = {axis: read_curve(job.root, axis).end for axis in AXES}
    assert ends == {"device-seconds": 10.0, "gpu-hours": 10.0 / 3600, "completions": 20 * 128.0, "steps": 20.0}
    curve = read_curve(job.root, "steps")
    assert (curve.compute, curve.r0, curve.samples) == ((5.0, 10.0, 15.0, 20.0), 0.12, 1024)


def test_a_run_without_an_evaluation_at_the_start_has_no_R_0(tmp_path: Path) -> None:
    (job,) = _jobs(tmp_path, 1, steps="20")
    run_jobs([job], 1, threading.Event(), lambda _: None)
    evals = job.root / "evals.jsonl"
    evals.write_text("".join(evals.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="needs an evaluation at step 0, which is R_0"):
        read_curve(job.root, "steps")
