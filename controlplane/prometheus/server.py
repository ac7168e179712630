"""A `prometheus` on PATH as a child process, on loopback, with our configuration."""

import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from controlplane.prometheus.targets import mirror

MISSING = """No `prometheus` on PATH. Nothing is downloaded for you; get it in one of these ways and run the same command again:
  Debian, Ubuntu    apt install prometheus       (stop its own service if you do not want it: systemctl disable --now prometheus)
  macOS             brew install prometheus
  any Linux         https://prometheus.io/download/ : unpack the archive, compare its sha256 with the one on that page, and put
                    the folder in front: PATH=/where/you/unpacked:$PATH
Without it these work all the same: control, watch, report, forecast and the built-in history (scalerl metrics show RUN).
Missing without it: dashboards in Grafana, and alerts that reach people when the controller itself is gone."""


def find() -> str | None:
    """Path of the program, or None."""
    return shutil.which("prometheus")


def serve(
    program: str, runs: Path, data: Path, port: int, keep: str, stop: threading.Event, say: Callable[[str], None]
) -> int:
    """Run the server until `stop` is set or it ends by itself; its exit code. Targets follow the runs every 2 seconds.

    The server listens on loopback only and its data stay in `data`. Nothing of the network is asked.
    """
    mirror(runs, data / "targets")
    command = [
        program,
        f"--config.file={data / 'prometheus.yml'}",
        f"--storage.tsdb.path={data / 'tsdb'}",
        f"--storage.tsdb.retention.time={keep}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with open(data / "prometheus.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    say(
        f"Prometheus on http://127.0.0.1:{port} (loopback only), data in {data}, log {data / 'prometheus.log'}. Ctrl-C ends it."
    )
    known = -1
    try:
        while process.poll() is None and not stop.wait(2 if known >= 0 else 0.5):
            if (number := mirror(runs, data / "targets")) != known:
                say(f"{number} targets")
                known = number
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return 0 if stop.is_set() else process.returncode or 0
