"""Built-in scraper: reads a trainer's /metrics page itself, so that one run needs no Prometheus server."""

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from controlplane.snapshot import series_id
from controlplane.sources.base import Sample, SourceError


class ScrapeSource:
    """Scrapes the target that a trainer wrote (a Prometheus file_sd file with one target).

    The file is read again at every scrape, because a restarted trainer has a new port.
    """

    def __init__(self, target_file: Path, timeout: float = 2.0, clock: Callable[[], float] = time.time) -> None:
        self._target_file, self._clock = target_file, clock
        self._client = httpx.Client(timeout=timeout, trust_env=False)

    def read(self, names: Collection[str]) -> Sample:
        return self._read(names)

    def read_all(self) -> Sample:
        """Newest sample of every series on the page; for recording."""
        return self._read(None)

    def _read(self, names: Collection[str] | None) -> Sample:
        address = self._address()
        try:
            response = self._client.get(f"http://{address}/metrics")
            response.raise_for_status()
            at = self._clock()
            return Sample(at, parse(response.text, names))
        except httpx.HTTPError as error:
            raise SourceError(
                f"the trainer's metrics at {address} cannot be read ({error or type(error).__name__})"
            ) from None
        except ValueError as error:
            raise SourceError(
                f"the trainer's metrics at {address} are not in the Prometheus text format ({error})"
            ) from None

    def _address(self) -> str:
        try:
            entries = json.loads(self._target_file.read_text())
            return str(entries[0]["targets"][0])
        except FileNotFoundError:
            raise SourceError(f"{self._target_file} does not exist: the trainer is not running") from None
        except (ValueError, LookupError, TypeError):
            raise SourceError(f"{self._target_file} is not a target file with one target") from None


def parse(text: str, names: Collection[str] | None) -> dict[str, float]:
    """Values of the wanted metric names in a text exposition, by series id; None wants every one."""
    wanted = None if names is None else set(names)
    return {
        series_id(sample.name, sample.labels): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if wanted is None or sample.name in wanted
    }
