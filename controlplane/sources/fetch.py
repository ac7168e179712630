"""One HTTP answer within hard limits: so many bytes, so many seconds, whatever the other side does.

Timeouts of a client count single reads: a server that sends one byte a second would hold it for ever, and a name server
that hangs is bounded by nothing. So each request runs in a thread of its own that is given up when the time is over;
until such a thread has ended the next request is refused, which bounds what is left behind to one.
"""

import threading

import httpx


class FetchError(Exception):
    """No whole answer within the limits; a few words."""


class Fetcher:
    """Fetches pages. Not to be shared between threads."""

    def __init__(self, seconds: float, most_bytes: int) -> None:
        self._seconds, self._most = seconds, most_bytes
        self._client = self._new()
        self._abandoned: threading.Thread | None = None

    def fetch(self, url: str, form: dict[str, str] | None = None, accept: frozenset[int] = frozenset({200})) -> bytes:
        """The body of the answer to a GET, or with `form` to a POST; `accept` are the status codes that may come.

        Raises:
            FetchError: anything else.
        """
        if self._abandoned is not None and self._abandoned.is_alive():
            raise FetchError("an earlier request still hangs")
        self._abandoned = None
        outcome: list[bytes | FetchError] = []
        client = self._client
        work = threading.Thread(target=lambda: outcome.append(self._work(client, url, form, accept)), daemon=True)
        work.start()
        work.join(self._seconds)
        if not outcome:
            self._abandoned = work
            self._client = self._new()
            client.close()  # closes its connection under the thread, which then ends
            raise self._late()
        if isinstance(outcome[0], FetchError):
            raise outcome[0]
        return outcome[0]

    def _late(self) -> FetchError:
        return FetchError(f"no whole answer within {self._seconds:g} s")

    def _new(self) -> httpx.Client:
        # Redirects are not followed: a metrics page does not send its reader elsewhere.
        headers = {"Accept-Encoding": "identity"}
        return httpx.Client(timeout=self._seconds, trust_env=False, follow_redirects=False, headers=headers)

    def _work(
        self, client: httpx.Client, url: str, form: dict[str, str] | None, accept: frozenset[int]
    ) -> bytes | FetchError:
        try:
            with client.stream("GET" if form is None else "POST", url, data=form) as response:
                if response.status_code not in accept:
                    return FetchError(f"status {response.status_code}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    return FetchError("a compressed answer that nobody asked for")
                body = bytearray()
                for chunk in response.iter_raw(64 * 1024):
                    body += chunk
                    if len(body) > self._most:
                        return FetchError(f"larger than {self._most} bytes")
                return bytes(body)
        except httpx.TimeoutException:
            return self._late()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RuntimeError) as error:
            return FetchError(str(error) or type(error).__name__)
