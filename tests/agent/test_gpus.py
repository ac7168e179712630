"""GPU metrics, read from an NVML that is NOT real: the machines that run these tests have no GPU.

`FakeNvml` answers as the documented API of NVML does (units, structures, errors); nothing here shows numbers of a real GPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from controlplane.agent import exposition
from controlplane.agent.gpus import STALE_SECONDS, GpuReader
from controlplane.contract.metrics import GPU
from controlplane.contract.rundir import RunDir
from controlplane.sources.scrape import parse
from tests.agent.house import make_agent, report


class NVMLError(Exception):
    pass


@dataclass
class FakeNvml:
    """Two GPUs of 80 GB. `broken` names calls that are not supported."""

    busy: int = 90
    broken: set[str] = field(default_factory=set)
    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0

    def _call(self, name: str) -> None:
        if name in self.broken:
            raise NVMLError("Not Supported")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < 2:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-b": 1}[uuid]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._call("utilisation")
        return SimpleNamespace(gpu=self.busy - 20 * handle, memory=50)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * 2**30, used=60 * 2**30, free=20 * 2**30)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._call("power")
        return 412_345  # milliwatts

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 61


def reader(nvml: FakeNvml, visible: str | None = None, clock: Callable[[], float] = lambda: 0.0) -> GpuReader:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return GpuReader(exposition.Store(GPU), nvml=nvml, environment=environment, clock=clock)


def values(gpus: GpuReader) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for series, value in sorted(parse(gpus._store.text(), None).items()):
        found.setdefault(series.partition("{")[0], []).append(value)
    return found


def test_values_are_in_our_units_and_per_gpu() -> None:
    gpus = reader(FakeNvml())
    gpus.read()
    found = values(gpus)
    assert found["rl_gpu_utilization_ratio"] == [0.9, 0.7]
    assert found["rl_gpu_memory_used_bytes"] == [60 * 2**30] * 2
    assert found["rl_gpu_power_watts"] == [412.345] * 2
    assert found["rl_gpu_temperature_celsius"] == [61.0] * 2
    assert "rl_gpu_tensor_active_ratio" not in found, "NVML does not know it; only DCGM does"
    assert sum(map(len, found.values())) <= 6 * 2


@pytest.mark.parametrize(
    ("visible", "names"), [("1", {"1"}), ("GPU-b", {"GPU-b"}), ("", set()), ("0,-1,1", {"0"}), ("7", set())]
)
def test_only_the_gpus_of_this_process_count(visible: str, names: set[str]) -> None:
    gpus = reader(FakeNvml(), visible)
    assert gpus.found == len(names)
    gpus.read()
    assert {part for part in names if f'gpu="{part}"' in gpus._store.text()} == names


def test_what_a_gpu_does_not_tell_is_absent_and_the_rest_is_there() -> None:
    gpus = reader(FakeNvml(broken={"utilisation", "power"}))
    gpus.read()
    assert set(values(gpus)) == {"rl_gpu_memory_used_bytes", "rl_gpu_memory_total_bytes", "rl_gpu_temperature_celsius"}
    assert gpus.utilization() is None


def test_the_mean_since_the_last_step_is_the_utilisation_of_the_step() -> None:
    nvml = FakeNvml()
    gpus = reader(nvml)
    gpus.read()
    nvml.busy = 50
    gpus.read()
    assert gpus.utilization() == pytest.approx((0.8 + 0.4) / 2)
    assert gpus.utilization() is None


def test_a_driver_that_hangs_takes_its_series_down_instead_of_repeating_the_last() -> None:
    now = [0.0]
    gpus = reader(FakeNvml(), clock=lambda: now[0])
    gpus.read()
    now[0] = STALE_SECONDS - 1
    gpus.utilization()
    assert values(gpus)
    now[0] = STALE_SECONDS + 1
    gpus.utilization()
    assert values(gpus) == {}
    gpus.read()
    assert values(gpus)


def test_without_nvml_there_is_nothing_and_the_trainers_own_number_stands(rundir: RunDir) -> None:
    agent = make_agent(rundir)
    agent.step(report(utilization={"process": 0.5}))
    found = parse(agent.store.text(), None)
    assert found['rl_trainer_utilization_ratio{role="process"}'] == 0.5
    assert not [series for series in found if series.startswith("rl_gpu")]


def test_with_a_gpu_its_use_stands_for_the_process(rundir: RunDir) -> None:
    agent = make_agent(rundir)
    agent._gpus = GpuReader(agent.store, nvml=FakeNvml(), environment={})
    agent._gpus.read()
    agent.step(report(utilization={}))
    found = parse(agent.store.text(), None)
    assert found['rl_trainer_utilization_ratio{role="process"}'] == pytest.approx(0.8)
    assert not math.isnan(found['rl_trainer_utilization_ratio{role="process"}'])
