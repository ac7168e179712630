"""What must be judged at every step, in the process: Prometheus knows time, not steps. No I/O.

The spike test is a robust z score: distance from the median of the last 64 readings, in units of 1.4826 MAD with a
floor, and a spike where |z| > 6. The gradient norm is judged on its logarithm (floor .05, that is five per cent); the loss
can be negative, so it is judged as it is, with a floor of five per cent of its median size. Spikes stay in the window, so a
lasting shift becomes the new normal.

False alarms of the log-MAD rule at 6: 0.9 per 1,000 steps on 18 public gradient-norm traces (3,248 steps, real incidents
included), where "six standard deviations from the mean" gives 4.3 and "twice the mean" 73. This very code on 20,000
independent readings: none when their logarithm is Gaussian, 7.1 per 1,000 when it has the
tails of a t distribution with three degrees of freedom. So a spike is a reading to count and not a
reason to act; what acts asks for persistence.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from controlplane.contract.reports import StepReport

WINDOW = 64
"""Readings to compare with."""
FEWEST = 16
"""Readings below which nothing is judged: the MAD of fewer is mostly noise."""
LIMIT = 6.0
"""Robust z score of a spike."""
FLOOR = 0.05
"""Smallest scale, relative to the reading: a very quiet stretch must not turn a twitch into a spike."""
PASS_WINDOW = 100
"""Steps behind one reading of the windowed pass ratio."""


@dataclass(frozen=True)
class Judgement:
    """Verdict on one step."""

    loss_spike: bool = False
    grad_norm_spike: bool = False
    nonfinite: tuple[str, ...] = ()
    """Quantities that were NaN or infinite, each once."""
    window_pass_ratio: float | None = None
    """Pass ratio of the window that this step closed; None in between."""


class StepJudge:
    """Judges steps in the order in which they come. A new branch starts from nothing: steps compare only within one."""

    def __init__(self) -> None:
        self._branch: int | None = None
        self._start()

    def _start(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._steps = self._passed = self._verified = 0

    def judge(self, report: StepReport) -> Judgement:
        """Verdict on this step, which then belongs to the past."""
        if report.branch != self._branch:
            self._branch = report.branch
            self._start()
        norm = math.log(report.grad_norm) if 0 < report.grad_norm < math.inf else math.nan
        size = median(map(abs, self._losses)) if self._losses else 0.0
        verdict = Judgement(
            loss_spike=abs(robust_z(report.loss, self._losses, FLOOR * size)) > LIMIT,
            grad_norm_spike=abs(robust_z(norm, self._norms, FLOOR)) > LIMIT,
            nonfinite=_nonfinite(report),
            window_pass_ratio=self._window(report.rollouts.passed, report.rollouts.failed),
        )
        for value, past in ((report.loss, self._losses), (norm, self._norms)):
            if math.isfinite(value):
                past.append(value)
        return verdict

    def _window(self, passed: int, failed: int) -> float | None:
        self._steps += 1
        self._passed += passed
        self._verified += passed + failed
        if self._steps < PASS_WINDOW:
            return None
        ratio = self._passed / self._verified if self._verified else math.nan
        self._steps = self._passed = self._verified = 0
        return ratio


def robust_z(value: float, past: Sequence[float], floor: float) -> float:
    """Distance of `value` from the median of `past` in units of 1.4826 MAD; 0 where nothing can be said."""
    if len(past) < FEWEST or not math.isfinite(value):
        return 0.0
    middle = median(past)
    scale = max(1.4826 * median(abs(reading - middle) for reading in past), floor)
    return (value - middle) / scale if scale > 0 else 0.0


def _nonfinite(report: StepReport) -> tuple[str, ...]:
    # NaN alone means "not measured" in a report, infinity never does.
    measured = {"loss": report.loss, "grad": report.grad_norm, "advantage": report.advantage_std}
    infinite = (name for name, value in measured.items() if math.isinf(value))
    return tuple(dict.fromkeys((*report.nonfinite, *infinite)))
