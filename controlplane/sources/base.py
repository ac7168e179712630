"""The seam between the controller and whatever holds the metrics of a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class SourceError(Exception):
    """The source could not be read; one sentence. The controller then takes no new action."""


@dataclass(frozen=True)
class Sample:
    """Newest values of a run. `at` is the unix time at which they were sampled, not at which they were asked for."""

    at: float
    values: dict[str, float]
    """Series id -> value; target labels (job, instance, run) are left out."""


class MetricSource(Protocol):
    """Reads the newest samples of one run. Every implementation gives the same values for the same run."""

    def read(self, names: Collection[str]) -> Sample:
        """Newest sample of every series whose metric name is in `names`.

        Raises:
            SourceError: nothing could be read; never an empty or a half sample.
        """
        ...


@runtime_checkable
class QuerySource(Protocol):
    """A source that can also answer the queries of a policy."""

    def ask(self, queries: Mapping[str, str]) -> dict[str, float]:
        """Values by signal; one without a result is missing.

        Raises:
            SourceError: a query could not be answered.
        """
        ...
