"""Ray itself: joins a cluster, or starts a small one for this process alone that is gone when the process is.

A Ray of our own shows no dashboard, keeps the output of its workers in its own logs, sends no usage statistics, and takes
commands only with a token that is new every time. Its processes die with this one, however that ends.
"""

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.cluster import ClusterFailure

OBJECT_STORE = 256 * 2**20
"""Bytes of shared memory for what processes hand to each other; weights do not go through it."""
PREFIX = "scalerl-ray-"


class NoCluster(ClusterFailure):
    """There is no Ray at that address, or none could be started. One sentence."""


@contextmanager
def connected(address: str, cpus: float) -> Iterator[None]:
    """Ray while this lasts. Without an address one is started, with `cpus` logical CPUs at least; one that this process
    is connected to already is used and left alone.

    Raises:
        NoCluster: see there.
    """
    _require_somebody(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray  # reads the environment when it is imported

    if ray.is_initialized():
        yield
        return
    directory = None if address else _directory()
    own = {
        "num_cpus": max(os.cpu_count() or 1, int(-(-cpus // 1))),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_temp_dir": str(directory),
    }
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else own))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NoCluster(f"Ray at {address}: {reason}" if address else f"Ray did not start: {reason}") from error
    # What Ray prints about each process that dies, a page at a time, is one line of ours in events.jsonl. It has no switch for it.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _require_somebody(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    if address.startswith("ray://"):
        raise NoCluster(
            f"{address} is the port for remote clients; the driver belongs into the cluster: give HOST:PORT"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():  # `auto`, or none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise NoCluster(f"nobody answers at {address}: {error.strerror or error}") from error


def _directory() -> Path:
    """A new directory for logs and sockets; those of processes that were killed are removed. Short: sockets have short names."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{PREFIX}*"):
        pid = old.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))
