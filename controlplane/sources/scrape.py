"""Built-in scraper: reads a trainer's /metrics page itself, so that one run needs no Prometheus server."""

import json
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

from controlplane.sources.base import Sample, SourceError
from controlplane.sources.exposition import parse
from controlplane.sources.fetch import Fetcher, FetchError

LARGEST_PAGE = 8 * 1024 * 1024
LARGEST_TARGET = 64 * 1024
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]{1,253}):\d{1,5}")


class ScrapeSource:
    """Scrapes the target that a trainer wrote (a Prometheus file_sd file with one target).

    The file is read again at every scrape, because a restarted trainer has a new port. A page that is too large, too slow
    or no exposition is an error, never half a sample.
    """

    def __init__(self, target_file: Path, timeout: float = 2.0, clock: Callable[[], float] = time.time) -> None:
        self._target_file, self._clock = target_file, clock
        self._fetcher = Fetcher(timeout, LARGEST_PAGE)

    def read(self, names: Collection[str]) -> Sample:
        return self._read(names)

    def read_all(self) -> Sample:
        """Newest sample of every series on the page; for recording."""
        return self._read(None)

    def _read(self, names: Collection[str] | None) -> Sample:
        address = self._address()
        try:
            page = self._fetcher.fetch(f"http://{address}/metrics")
            return Sample(self._clock(), parse(page.decode(), names))
        except FetchError as error:
            raise SourceError(f"the trainer's metrics at {address} cannot be read ({error})") from None
        except ValueError as error:
            raise SourceError(
                f"the trainer's metrics at {address} are not in the Prometheus text format ({error})"
            ) from None

    def _address(self) -> str:
        try:
            with self._target_file.open("rb") as file:
                address = json.loads(file.read(LARGEST_TARGET))[0]["targets"][0]
        except FileNotFoundError:
            raise SourceError(f"{self._target_file} does not exist: the trainer is not running") from None
        except OSError as error:
            raise SourceError(f"{self._target_file} cannot be read ({error.strerror or error})") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            address = None
        if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
            raise SourceError(f"{self._target_file} is not a target file with one target, host:port")
        return address
