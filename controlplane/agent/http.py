"""The HTTP transport, agent side: pulls the desired document by long poll, puts the observed one. Standard library only.

A thread waits at the server, so that `fetch` never does; `publish` waits at most `timeout` in the courier's thread, and sends what
is new in the records of probes along (shipping.py). Nothing
here reaches the training loop: while the server is away the run goes on unchanged, requests back off to one in half a
minute, and the newest observed document is delivered when it is back.
"""

import http.client
import ipaddress
import json
import logging
import random
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from controlplane.agent.mailbox import LARGEST_DOCUMENT, ensure_key
from controlplane.agent.shipping import Shipper
from controlplane.contract.rundir import RunDir, RunInfo

log = logging.getLogger(__name__)

SLOWEST_RETRY = 30.0


class HttpMailbox:
    """A mailbox at `url`, the address of `scalerl serve`.

    Args:
        rundir: the trainer's own directory; its key is told to the server when the run first comes.
        token: with the scope `agent`.
        wait: seconds that the server may hold a request for a new document; 0 asks without waiting, at each `fetch`.
        timeout: seconds for anything else.
        cafile: certificates to trust, for a server with one of its own.

    Raises:
        ValueError: the URL would send the token over the network in the clear.
    """

    def __init__(
        self,
        url: str,
        token: str,
        rundir: RunDir,
        info: RunInfo,
        *,
        wait: float = 25.0,
        timeout: float = 10.0,
        cafile: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url}: must be an address like https://host:9411")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError(f"{url}: would send a token in the clear; use https, or a tunnel to loopback")
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "https"
        self._context = ssl.create_default_context(cafile=cafile) if self._tls else None
        self._run = f"{parts.path.rstrip('/')}/v1/runs/{quote(info.run_uid, safe='')}"
        self._token, self._timeout, self._wait = token, timeout, wait
        self._registration = json.dumps({"info": info.model_dump(), "key": ensure_key(rundir).hex()})
        self._known = False
        self._tag = ""
        self._backoff, self._shipping = _Backoff(), _Backoff()
        self._shipper = Shipper(rundir.probes, self._put_piece)
        self._thread: threading.Thread | None = None
        self._pulled: bytes | None = None

    def fetch(self) -> bytes | None:
        """The newest desired document; with `wait` what the thread has found, without it what the server has now."""
        if not self._wait:
            self._pull()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._poll, name="control-poll", daemon=True)
            self._thread.start()
        return self._pulled

    def publish(self, observed_json: str) -> None:
        """Put the observed document. Raises OSError; while backing off without asking the server."""
        self._backoff.hold()
        try:
            self._register()
            self._request("PUT", "/observed", observed_json, {204})
        except OSError as error:
            self._backoff.failed(error)
            raise
        self._backoff.worked()
        self._ship()

    def _ship(self) -> None:
        """Records of probes; while that fails, the documents go their way all the same."""
        try:
            self._shipping.hold()
            self._shipper.ship()
        except OSError as error:
            if self._shipping.failed(error):
                log.warning("control: records of probes cannot be sent: %s", error)
        else:
            self._shipping.worked()

    def _put_piece(self, probe: str, at: int, piece: bytes) -> int:
        status, _, body = self._request("PUT", f"/probes/{quote(probe, safe='')}?at={at}", piece, {204, 409})
        if status == 204:
            return at + len(piece)
        try:
            return int(json.loads(body)["length"])
        except (ValueError, LookupError, TypeError):
            raise OSError(f"{self._host}: {_error(body) or 'status 409'}") from None

    def _poll(self) -> None:
        backoff = _Backoff()
        while True:
            try:
                self._pull()
                backoff.worked()
            except OSError as error:
                if backoff.failed(error):
                    log.warning("control: no documents can be fetched: %s", error)
                time.sleep(backoff.seconds)

    def _pull(self) -> None:
        self._register()
        headers = {"If-None-Match": self._tag} if self._tag else {}
        query = f"/desired?wait={self._wait:g}"
        status, answer_headers, body = self._request("GET", query, None, {200, 304}, headers, self._wait)
        if status == 200:
            self._tag, self._pulled = answer_headers.get("etag") or answer_headers.get("ETag", ""), body

    def _register(self) -> None:
        if not self._known:
            self._request("PUT", "", self._registration, {204})
            self._known = True

    def _request(
        self,
        method: str,
        path: str,
        body: str | bytes | None,
        expected: set[int],
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request on a connection of its own: nothing is shared between the threads, and a restart breaks nothing."""
        timeout = self._timeout + wait
        if self._tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
            connection.request(method, self._run + path, body, sent)
            response = connection.getresponse()
            data = response.read(LARGEST_DOCUMENT + 1)
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(f"{self._host}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if response.status not in expected:
            if response.status == 404:
                self._known = False  # the server has lost its directories: say again who we are
            raise OSError(f"{self._host}: status {response.status} {_error(data)}")
        return response.status, dict(response.headers), data


class _Backoff:
    """Doubles from a second to half a minute, with some chance in it so that a thousand agents do not come at once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._until, self._problem = 0.0, ""

    def hold(self) -> None:
        """Raises the last problem again while it is too early to try."""
        if time.monotonic() < self._until:
            raise OSError(self._problem)

    def failed(self, error: OSError) -> bool:
        """Whether this is news."""
        base = min(SLOWEST_RETRY, max(1.0, 2 * self.seconds))
        self.seconds = base * random.uniform(0.75, 1.0)
        self._until = time.monotonic() + self.seconds
        news, self._problem = str(error) != self._problem, str(error)
        return news

    def worked(self) -> None:
        self.seconds, self._until, self._problem = 0.0, 0.0, ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _error(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])[:300]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
