"""What is read is said, and what cannot be a curve of pass rates is refused with its place."""

import json
from pathlib import Path

import numpy as np
import pytest

from controlplane.contract.yamlfile import FileError
from controlplane.fitting.prometheus import query, saved
from controlplane.fitting.series import given, read_given
from tests.fitting.curves import points, write_csv


def test_a_weights_and_biases_export_is_read_and_its_guesses_are_said(tmp_path: Path) -> None:
    head = ["Step", "run - eval/accuracy", "run - eval/accuracy__MIN", "run - eval/accuracy__MAX"]
    path = write_csv(tmp_path / "export.csv", head, [[c, y, y, y] for c, y in points()])
    found = read_given(path)
    assert found.compute == pytest.approx([c for c, _ in points()])
    assert found.rate == pytest.approx([y for _, y in points()])
    assert any("run - eval/accuracy" in note for note in found.notes)


def test_trainer_state_and_json_lines_give_the_same_curve(tmp_path: Path) -> None:
    rows = [{"step": int(c), "eval_reward": y} for c, y in points()]
    state, lines = tmp_path / "trainer_state.json", tmp_path / "log.jsonl"
    state.write_text(json.dumps({"log_history": [*rows, {"step": 600, "train_loss": 0.1}]}))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = read_given(state), read_given(lines)
    assert np.array_equal(one.rate, other.rate)
    assert np.array_equal(one.compute, other.compute)


def test_gpu_hours_are_the_compute_where_they_are_logged_and_a_named_column_wins(tmp_path: Path) -> None:
    head = ["step", "gpu_hours", "tokens", "pass_rate"]
    path = write_csv(tmp_path / "log.csv", head, [[i, 2.0 * c, 1e6 * c, y] for i, (c, y) in enumerate(points())])
    assert read_given(path).unit == "GPU-hours"
    named = read_given(path, compute="tokens")
    assert named.unit == "tokens"
    assert named.compute[-1] == pytest.approx(6e8)
    with pytest.raises(FileError, match="no column 'watts'; it has step, gpu_hours"):
        read_given(path, compute="watts")


def test_a_training_reward_is_taken_only_without_a_held_out_one_and_that_is_said(tmp_path: Path) -> None:
    rows = [[i, 0.5, y] for i, (_, y) in enumerate(points())]
    both = read_given(write_csv(tmp_path / "both.csv", ["step", "reward", "eval/accuracy"], rows))
    assert both.rate[0] != 0.5
    only = read_given(write_csv(tmp_path / "only.csv", ["step", "accuracy"], [[r[0], r[2]] for r in rows]))
    assert any("held out" in note for note in only.notes)
    assert not any("held out" in note for note in both.notes)


def test_points_without_a_number_are_left_out_and_counted() -> None:
    found = given("x", np.array([0.0, 1.0, np.nan, 3.0]), np.array([0.1, np.nan, 0.3, 0.4]), "steps")
    assert list(found.compute) == [0.0, 3.0]
    assert found.notes == ("2 of 4 points have no number and are left out",)


@pytest.mark.parametrize(
    ("compute", "rate", "says"),
    [
        ([1.0, 3.0, 2.0], [0.1, 0.2, 0.3], r"point 3 \(compute 2.*: compute decreases"),
        ([1.0, 2.0], [0.1, 1.2], r"point 2 .*outside 0 to 1; give its range with --bounds"),
        ([-1.0, 2.0], [0.1, 0.2], "point 1 .*compute is below 0"),
        ([np.nan], [0.2], "no point has both"),
    ],
)
def test_what_cannot_be_a_curve_is_refused_with_its_place(compute: list[float], rate: list[float], says: str) -> None:
    with pytest.raises(FileError, match=says):
        given("x", np.array(compute), np.array(rate), "steps")


def test_repeated_compute_is_allowed_and_a_file_without_a_pass_rate_is_not(tmp_path: Path) -> None:
    assert len(given("x", np.array([1.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.3]), "steps").compute) == 3
    with pytest.raises(FileError, match="name it with --pass-rate"):
        read_given(write_csv(tmp_path / "loss.csv", ["step", "loss"], [[1, 0.5], [2, 0.4]]))


def answer() -> dict[str, object]:
    """Three evaluations, each scraped twice; the second was of a branch that was given up."""
    evals = [(0.0, 0.1), (100.0, 0.2), (200.0, 0.15), (150.0, 0.3)]
    times = [(15.0 * i, *evals[i // 2]) for i in range(8)]

    def row(name: str, column: int) -> dict[str, object]:
        return {"metric": {"__name__": name, "run": "r"}, "values": [[t[0], str(t[column])] for t in times]}

    result = [row("rl_eval_pass_ratio", 2), row("rl_eval_compute_gpu_seconds", 1)]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}


def test_a_prometheus_range_is_one_point_per_evaluation_of_the_lineage(tmp_path: Path) -> None:
    path = tmp_path / "range.json"
    path.write_text(json.dumps(answer()))
    found = saved(path)
    assert found is not None
    assert list(found.compute) == [0.0, 100.0, 150.0]
    assert list(found.rate) == [0.1, 0.2, 0.3]
    assert "3 evaluations in 8 scrapes" in found.notes[0]
    (tmp_path / "other.json").write_text("[1]")
    assert saved(tmp_path / "other.json") is None


def test_the_server_is_asked_for_the_run_and_its_refusal_is_passed_on() -> None:
    import httpx

    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.content.decode())
        return httpx.Response(200, json=answer() if len(asked) == 1 else {"status": "error", "error": "too many"})

    def client() -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(server))

    found = query("http://127.0.0.1:9090/", "night", "held_out", 24.0, 1e9, client())
    assert len(found.rate) == 3
    assert "night" in asked[0]
    with pytest.raises(FileError, match="refused the query: too many"):
        query("http://127.0.0.1:9090", "night", "held_out", 24.0, 1e9, client())
    with pytest.raises(FileError, match="label selector"):
        query("http://127.0.0.1:9090", 'a"b', "held_out", 24.0, 1e9, client())
