"""Where wall and CPU time go."""

from itertools import count

import pytest

from controlplane.contract.documents import Phase
from trainer.stopwatch import Devices, Stopwatch, utilization


def test_cpu_time_belongs_to_the_phase_in_which_it_was_used() -> None:
    wall, cpu = [0.0], [0.0]
    watch = Stopwatch(clock=lambda: wall[0], cpu=lambda: cpu[0])

    def spend(seconds: float, busy: float) -> None:
        wall[0] += seconds
        cpu[0] += busy

    watch.switch(Phase.generating)
    spend(2.0, 1.0)
    watch.switch(Phase.training)
    spend(4.0, 8.0)
    watch.switch(Phase.idle)
    spend(4.0, 0.0)
    lap = watch.lap()
    assert lap == {Phase.idle: 4.0, Phase.generating: 2.0, Phase.training: 4.0}
    shares = utilization(lap, watch.busy, Devices(2, 2))
    assert shares == pytest.approx({"process": 9 / 20, "generator": 1 / 4, "learner": 1.0})
    assert utilization(lap, watch.busy, Devices(1, 1, "paced")) == pytest.approx({"process": 9 / 20})
    watch.lap()
    assert sum(watch.busy.values()) == 0.0


def test_a_role_that_did_nothing_has_no_utilization_and_neither_has_a_gpu_run() -> None:
    ticks = count()
    watch = Stopwatch(clock=lambda: float(next(ticks)), cpu=None)
    watch.switch(Phase.training)
    lap = watch.lap()
    assert utilization(lap, watch.busy, Devices()) == {}
    assert "generator" not in utilization({Phase.training: 1.0}, {Phase.training: 0.5}, Devices())
