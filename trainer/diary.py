"""What a run writes down about itself: steps.jsonl, evals.jsonl, events.jsonl and ledger.jsonl, and the lines it says."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from controlplane.contract.reports import EvalReport, StepReport
from controlplane.contract.rundir import RunDir, append_line, read_lines
from trainer.record import eval_line, finite, step_line
from trainer.state import Account, RunState
from trainer.types import Item


class Diary:
    """Append-only. Nothing but `reached` is ever read back by the trainer."""

    def __init__(self, rundir: RunDir, steps: int, say: Callable[[str], None]) -> None:
        self._rundir, self._steps, self._say = rundir, steps, say

    def event(self, state: RunState, event: str, /, **fields: Any) -> None:
        """Something that happened at the boundary after `state.step`."""
        where = {"event": event, "step": state.step, "branch": state.branch, "time": time.time()}
        append_line(self._rundir.events, {**where, **{key: finite(value) for key, value in fields.items()}})
        if event != "checkpoint":
            self._say(f"{event} at step {state.step}, branch {state.branch}")

    def trained(self, branch: int, step: int, items: Sequence[Item]) -> None:
        """The prompts of a step. Where a crash made a step run twice, the last line of a (branch, step) counts."""
        epoch = min(item.epoch for item in items)
        line: dict[str, Any] = {"branch": branch, "step": step, "epoch": epoch}
        late = [list(item) for item in items if item.epoch != epoch]
        line["ordinals"] = [item.ordinal for item in items if item.epoch == epoch]
        append_line(self._rundir.ledger, {**line, "next_epoch": late} if late else line)

    def step(self, report: StepReport, account: Account, epoch: int, process: float) -> None:
        """A step, with the totals that curves can be drawn against; `process` is the CPU use of this process, 0 to 1."""
        totals = {name: getattr(account, name) for name in ("completions", "generated_tokens", "trained_tokens")}
        append_line(self._rundir.steps, {**step_line(report, epoch, time.time(), process), **totals})
        rollouts = report.rollouts
        self._say(
            f"step {report.step}/{self._steps}  pass {rollouts.passed / (rollouts.passed + rollouts.failed):.3f}"
            f"  grad {report.grad_norm:.3f}  lr {report.lr:.1e}  {report.seconds:.2f} s"
            + (f"  skipped: {report.skipped}" if report.skipped else "")
        )

    def evaluation(self, report: EvalReport, account: Account) -> None:
        """A held-out set."""
        append_line(self._rundir.evals, eval_line(report, vars(account), time.time()))
        self._say(
            f"evaluation at step {report.step}: {report.dataset} pass rate {report.pass_ratio:.3f}, "
            f"pass@{report.k} {report.pass_at_k:.3f}"
        )

    def reached(self) -> frozenset[float]:
        """Targets whose event has been written, in this process or one before."""
        events = read_lines(self._rundir.events)
        return frozenset(event["target"] for event in events if event["event"] == "target_reached")
