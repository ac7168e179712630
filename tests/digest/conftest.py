"""Facts and words are tested on the same runs as the report."""

from tests.report.conftest import record, runs

__all__ = ["record", "runs"]
