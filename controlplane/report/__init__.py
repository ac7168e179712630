"""The report of one run, or of several side by side: one HTML file that needs nothing else."""

from pathlib import Path

__all__ = ["write"]


def write(roots: list[Path], out: Path) -> None:
    """Write the report of the runs in `roots` to `out`, replacing it at once. With several runs they are compared first."""
    # matplotlib takes a second to load, and the live view needs only the words of this package.
    from controlplane.contract.rundir import write_atomic
    from controlplane.record import Record
    from controlplane.report.page import page

    write_atomic(out, page([Record.of(root) for root in roots]))
