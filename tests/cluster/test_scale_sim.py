"""The simulation at scale, small: what it measures at 512 generators it must get right at five."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from controlplane.contract.rundir import RunDir, read_lines

BENCH = Path(__file__).parents[2] / "bench" / "cluster"


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("scale_sim", BENCH / "scale_sim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_sim"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lost", [0.0, 0.4])
def test_every_prompt_is_trained_once_and_none_is_too_old_whoever_dies(
    sim: ModuleType, lost: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: Any = sim.parsed(
        f"--generators 5 --ranks 3 --batch 6 --samples 2 --mean 6 --longest 20 --token 1 --step-seconds 4 --slots 20 "
        f"--prompts 90 --steps 12 --staleness 3 --skip 2 --checkpoint 4 --lost {lost}".split()
    )
    simulation = sim.Simulation(options, tmp_path / "run")
    simulation.run()
    found = sim.summary(simulation, options.skip)
    rundir = RunDir(tmp_path / "run")
    trained = [
        item
        for line in read_lines(rundir.ledger)
        for item in [*((line["epoch"], n) for n in line["ordinals"]), *map(tuple, line.get("next_epoch", ()))]
    ]
    assert len(trained) == len(set(trained)) == 12 * 6
    assert max(found["staleness"]) <= 3
    assert (simulation.lost > 0) == (lost > 0)
    assert 0 < found["driver_cpu_per_step"] < found["seconds_per_step"]
    assert all(row["seconds"] >= 0 for row in simulation.rows)
    assert "step  12" in capsys.readouterr().out
