"""A recorded table as looks: what a controller beside that run would have seen after each row.

What a log does not hold is assumed, and every assumption is a note: the time of a row, the number of completions behind
it, and checkpoints at fixed distances that prove good like the trainer's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from controlplane.contract.documents import Action, CheckpointState, Observed, Phase, TunableState
from controlplane.meter import Evaluation, Meter, Tally
from controlplane.recorded import Table
from controlplane.sim.proof import Shelf
from controlplane.snapshot import Snapshot

_ASSUMED_SAMPLES = 256.0
_ASSUMED_SECONDS = 60.0
_LOOKS_IN_A_GAP = 30
_START = 1_800_000_000.0
_SIGNALS = (
    "pass_rate", "truncation", "gen_length", "zero_variance", "loss", "grad_norm", "entropy", "mismatch_kl",
    "effective_samples", "staleness", "utilization", "lr",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One look at the recorded run; `row` is its row in the table, None for a look between two rows."""

    row: int | None
    snapshot: Snapshot


def of_table(
    table: Table, samples: float | None = None, checkpoint_every: float = 0.0
) -> tuple[list[Frame], list[str]]:
    """Looks of a table in time order, and what had to be assumed.

    Args:
        table: the recorded run.
        samples: completions behind a row; None takes those of the table.
        checkpoint_every: steps between two assumed checkpoints; 0 takes a fortieth of the run, at least ten rows.
    """
    notes: list[str] = []
    n = samples or table.samples
    if n is None:
        n = _ASSUMED_SAMPLES
        notes.append(f"samples per row are unknown: {n:g} assumed")
    seconds = _seconds(table, notes)
    every = checkpoint_every or _distance(table)
    notes.append(f"checkpoints are assumed every {every:g} steps, each good once 20 healthy rows have followed it")
    return list(_looks(table, n, seconds, every)), notes


def _looks(table: Table, samples: float, seconds: list[float], every: float) -> Iterator[Frame]:
    meter = Meter("recorded-0", int(table.step.max()))
    shelf: Shelf[None] = Shelf(int(max(1.0, samples / 16)), 256)
    now, usual, branch, saved = _START, float(np.median(seconds)), 0, -np.inf
    for row, step in enumerate(table.step):
        if table.branch[row] != branch:
            branch, saved = int(table.branch[row]), step
            meter.incarnation(f"recorded-{branch}", int(step))
            _rewind(shelf, int(step))
        # A controller goes on looking while nothing comes; that is how it notices a stall.
        waits = min(_LOOKS_IN_A_GAP, int(seconds[row] / usual / 4))
        for wait in range(waits):
            at = now + seconds[row] * (wait + 1) / (waits + 1)
            yield Frame(None, meter.snapshot(at, at, _observed(table, max(row - 1, 0), at, shelf.states)))
        now += seconds[row]
        tally = _tally(table, row, samples)
        meter.step(tally, now)
        finite = isfinite(tally.pass_rate) and not tally.nonfinite
        shelf.stepped(tally.pass_rate, finite)
        if isfinite(held_out := _value(table, "eval_pass_rate", row)):
            meter.evaluation(Evaluation(int(step), held_out, float(table.compute[row])), 0)
            shelf.evaluated(int(step), held_out)
        elif finite and not table.known("eval_pass_rate"):
            shelf.evaluated(int(step), tally.pass_rate)  # the only judge there is
        if step >= saved + every and finite:
            saved = step
            # Assumed to be there to go back to, and not a fact: a policy must not worry about their age.
            shelf.save(int(step), 0, None, float(table.compute[row]))
        yield Frame(row, meter.snapshot(now, now, _observed(table, row, now, shelf.states)))


def _rewind(shelf: Shelf[None], step: int) -> None:
    earlier = [each for each in shelf.saved if each.step <= step]
    if earlier:
        shelf.restore(earlier[-1].step)
    else:
        shelf.saved.clear()


def _tally(table: Table, row: int, samples: float) -> Tally:
    values = {name: _value(table, name, row) for name in _SIGNALS}
    groups = max(1.0, samples / 16) if isfinite(values["zero_variance"]) else nan
    return Tally(
        step=int(table.step[row]),
        samples=samples,
        groups=groups,
        compute=float(table.compute[row]),
        nonfinite=_value(table, "nonfinite", row) == 1.0,
        **values,
    )


def _value(table: Table, name: str, row: int) -> float:
    column = table.columns.get(name)
    return nan if column is None else float(column[row])


def _seconds(table: Table, notes: list[str]) -> list[float]:
    """Wall time of each row: logged, from time stamps, or assumed."""
    if table.known("seconds") and np.isfinite(table.columns["seconds"]).all():
        return [float(x) for x in np.maximum(table.columns["seconds"], 1e-3)]
    if table.known("clock") and np.isfinite(table.columns["clock"]).all():
        apart = np.diff(table.columns["clock"])
        if (apart > 0).all() and len(apart):
            return [float(np.median(apart)), *(float(x) for x in apart)]
    notes.append(f"the time of rows is unknown: {_ASSUMED_SECONDS:g} s assumed, so stalls cannot be seen")
    return [_ASSUMED_SECONDS] * len(table)


def _distance(table: Table) -> float:
    apart = float(np.median(np.diff(table.step))) if len(table) > 1 else 1.0
    span = float(table.step.max() - table.step.min())
    return max(10.0 * max(apart, 0.0), span / 40.0, 1.0)


def _observed(table: Table, row: int, now: float, checkpoints: tuple[CheckpointState, ...]) -> Observed:
    return Observed(
        run_uid=table.name,
        incarnation=f"recorded-{int(table.branch[row])}",
        branch=0,
        step=int(table.step[row]),
        planned_steps=int(table.step.max()),
        compute=float(table.compute[row]),
        written_at=now,
        tunables={
            "lr_scale": TunableState(value=1.0, min=1e-3, max=10.0),
            "max_new_tokens": TunableState(value=16_384, min=1, max=1_000_000),
            "prompts_per_step": TunableState(value=64, min=1, max=65_536),
            "temperature": TunableState(value=1.0, min=0.01, max=2.0),
        },
        actions=tuple(Action),
        rollbacks_left=2,
        checkpoints=checkpoints,
        phase=Phase.training,
    )
