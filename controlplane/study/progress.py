"""What a study shows while it runs: a line per run on a terminal, a line per change of state elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

from rich.console import Console
from rich.live import Live
from rich.table import Table

from controlplane.digest import facts
from controlplane.record import Record
from controlplane.study.runs import Status

_COLOURS = {"waits": "dim", "runs": "bold", "done": "green", "failed": "red", "stopped": "yellow"}


class Progress:
    """Reads the runs as they go. Call it with the statuses, as often as liked."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._records: dict[str, Record] = {}
        self._told: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        """On a terminal, keep the lines in place until the block ends."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, refresh_per_second=4, transient=False) as self._live:
            yield self

    def __call__(self, statuses: Sequence[Status]) -> None:
        for status in statuses:
            if status.state != "waits" and (status.state == "runs" or self._told.get(status.job.name) != status.state):
                self._records.setdefault(status.job.name, Record.of(status.job.root)).update()
        if self._live is not None:
            self._live.update(self._table(statuses))
        else:
            for status in statuses:
                if status.state not in ("waits", self._told.get(status.job.name)):
                    self._console.print(
                        f"{status.job.name}: {status.state}{self._where(status)}", markup=False, highlight=False
                    )
        self._told = {status.job.name: status.state for status in statuses}

    def _table(self, statuses: Sequence[Status]) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for status in statuses:
            colour = _COLOURS[status.state]
            table.add_row(status.job.name, f"[{colour}]{status.state}[/]", self._where(status).lstrip(", "))
        return table

    def _where(self, status: Status) -> str:
        if status.state == "failed":
            return f", {status.reason}"
        record = self._records.get(status.job.name)
        if record is None or not (record.steps or record.evals):
            return ""
        held = facts.heldout(record)
        rate = facts.number(held[-1], "pass_ratio") if held else float("nan")
        words = f", step {facts.step_now(record)} of {facts.planned(record)}"
        return words + (f", held-out {rate:.3f}" if isfinite(rate) else "")
