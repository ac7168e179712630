"""`scalerl metrics`, for people without a Prometheus."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.metricstore import MetricStore
from controlplane.metricstore.command import app
from controlplane.metricstore.sketch import growth, sketch


def test_a_sketch_shows_shape_holes_and_numbers() -> None:
    times = np.arange(100.0)
    text = sketch(times, times, width=10)
    assert text.startswith("▁▂▃▃▄▅▆▆▇█"), text
    assert text.endswith("0 .. 99, now 99")
    hole = np.where((times > 40) & (times < 60), np.nan, 1.0)
    assert sketch(times, hole, width=10).startswith("▁▁▁▁▁ ▁▁▁▁")
    assert sketch(times, np.full(100, np.nan)).strip() == "no reading"


def test_growth_sees_a_restart_as_a_new_beginning() -> None:
    times, rates = growth(np.array([0.0, 10.0, 20.0, 30.0]), np.array([0.0, 10.0, 30.0, 5.0]))
    assert times.tolist() == [10.0, 20.0, 30.0]
    assert rates.tolist() == [1.0, 2.0, 0.5]


def test_metrics_are_listed_drawn_and_exported(tmp_path: Path) -> None:
    store = MetricStore(RunDir(tmp_path).metrics)
    for at in range(50):
        store.append(15.0 * at, {"rl_trainer_grad_norm": at / 50, "rl_trainer_steps_total": 3.0 * at})
    run = CliRunner()
    assert "rl_trainer_grad_norm" in run.invoke(app, ["show", str(tmp_path)]).output
    assert "now 0.98" in run.invoke(app, ["show", str(tmp_path), "rl_trainer_grad_norm"]).output
    assert "now 0.2" in run.invoke(app, ["show", str(tmp_path), "rl_trainer_steps_total"]).output
    out = tmp_path / "x.om"
    assert run.invoke(app, ["export", str(tmp_path), "--out", str(out)]).exit_code == 0
    assert out.read_text().endswith("# EOF\n")
    assert isinstance(run.invoke(app, ["show", str(tmp_path), "nothing"]).exception, FileError)
    missing = run.invoke(app, ["show", str(tmp_path / "elsewhere")]).exception
    with pytest.raises(FileError, match="nothing has recorded"):
        raise missing or AssertionError
