"""What telling others costs a look of the controller: `python bench/notices.py`.

Three Grafanas on loopback: one that answers, one that takes the connection and never answers, one that is not there. Every look
decides something, which is the worst case; a healthy run tells nothing at all.
"""

import json
import logging
import socket
import statistics
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from controlplane.decide import Decision, Kind
from controlplane.notify import Grafana, Notifier, Outbox
from controlplane.notify.channels import GrafanaChannel
from controlplane.snapshot import Snapshot

LOOKS = 2000


class Answers(BaseHTTPRequestHandler):
    """Takes every annotation."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"message": "Annotation added", "id": 1}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def measure(url: str) -> tuple[list[float], Counter[str], float]:
    """Seconds of every look, what became of the notices, seconds of closing."""
    results: Counter[str] = Counter()
    outbox = Outbox(GrafanaChannel(Grafana(url, "token", timeout=5.0)), lambda _, result: results.update([result]))
    notifier, seconds = Notifier("bench", [outbox]), []
    for number in range(LOOKS):
        decision = Decision(kind=Kind.advise, reason="the pass rate fell", step=number, rule="collapse")
        snapshot = Snapshot(at=1.8e9 + number, sampled_at=1.8e9 + number, metrics={}, observed=None)
        started = time.perf_counter()
        notifier.look(snapshot, decision)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    notifier.close()
    return seconds, results, time.perf_counter() - started


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0), backlog=128)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    places = {"answers": server.server_port, "never answers": silent.getsockname()[1], "is not there": free}
    print(
        f"{'a Grafana that':15} {'median us':>10} {'p99 us':>10} {'worst ms':>10} {'sent':>6} {'dropped':>8} {'close s':>8}"
    )
    for name, port in places.items():
        seconds, results, closing = measure(f"http://127.0.0.1:{port}")
        p99 = statistics.quantiles(seconds, n=100)[-1]
        row = f"{statistics.median(seconds) * 1e6:10.0f} {p99 * 1e6:10.0f} {max(seconds) * 1e3:10.1f}"
        print(f"{name:15} {row} {results['sent']:6} {results['dropped']:8} {closing:8.1f}")
    server.shutdown()


if __name__ == "__main__":
    main()
