"""The address that Alertmanager may call: a hint that a look is worth it now, and nothing more.

What the request says is thrown away unread. Alertmanager delivers late, repeated and grouped, so the controller reads the
metrics again and decides from those; a hint can make it look earlier, never decide otherwise. Hence no token: whoever reaches
this port on loopback can cause a look that would have come within seconds anyway, at most one a second.
"""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGEST = 1 << 20
SHORTEST = 1.0
"""Seconds between two looks, however many hints come."""


class Hints:
    """Listens on loopback for `POST /hint`; `pause` is a wait that a hint cuts short."""

    def __init__(self, port: int = 0) -> None:
        self._hinted = threading.Event()
        hinted = self._hinted

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "0")
                known = self.path == "/hint"
                small = length.isdigit() and int(length) <= LARGEST
                if known and small:
                    self.rfile.read(int(length))
                    hinted.set()
                self.send_response(204 if known and small else 413 if known else 404)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="hints", daemon=True)
        self._thread.start()

    def pause(self, stop: threading.Event, seconds: float) -> None:
        """Wait `seconds`, or until `stop`, or until a hint came - but then at least `SHORTEST`."""
        started = time.monotonic()
        while not stop.is_set() and (waited := time.monotonic() - started) < seconds:
            if self._hinted.is_set() and waited >= min(SHORTEST, seconds):
                break
            stop.wait(min(0.1, seconds - waited))
        self._hinted.clear()

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
