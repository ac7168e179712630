"""The GPUs of this process, read through NVML in a thread of its own.

    NVML --every second--> GpuReader --Store--> rl_gpu_* ;  its mean since the last step is the trainer's utilisation

`nvidia-ml-py` is optional and loaded only here. A driver in trouble can block a call for minutes, so neither a scrape nor a
training step ever waits for one: what is older than `STALE_SECONDS` is taken down instead. Only the GPUs that
`CUDA_VISIBLE_DEVICES` leaves to this process count; those of other nodes are read there, or by DCGM.
"""

import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from controlplane.agent.exposition import Store
from controlplane.contract.metrics import GPU

log = logging.getLogger(__name__)

STALE_SECONDS = 30.0


class GpuReader:
    """Fills `rl_gpu_*` of a store. Does nothing on a machine without NVML or without a GPU of ours.

    Args:
        store: holds the families of `contract.metrics.GPU`.
        role: what the GPUs of this process are for: process, generator or learner.
        nvml: the module `pynvml`, or what stands in its place in a test; None loads it.
        environment: where `CUDA_VISIBLE_DEVICES` is read.
    """

    def __init__(
        self,
        store: Store,
        role: str = "process",
        interval: float = 1.0,
        nvml: Any = None,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._role, self._interval, self._clock = store, role, interval, clock
        self._node = socket.gethostname()
        self._lock = threading.Lock()
        self._busy: list[float] = []
        self._read_at: float | None = None
        self._refused: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._nvml = nvml or _load()
        self._handles = _handles(self._nvml, environment) if self._nvml else {}

    @property
    def found(self) -> int:
        """GPUs of this process."""
        return len(self._handles)

    def start(self) -> None:
        """Read every `interval` seconds from now on, if there is a GPU."""
        if self._handles:
            self._thread = threading.Thread(target=self._run, name="gpu reader", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Read no more. A call that hangs in the driver is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def read(self) -> None:
        """One reading of every GPU into the store."""
        readings = {gpu: self._one(handle) for gpu, handle in self._handles.items()}
        with self._store.update():
            for gpu, values in readings.items():
                for name, value in values.items():
                    self._store.set(name, value, node=self._node, gpu=gpu, role=self._role)
        shares = [v["rl_gpu_utilization_ratio"] for v in readings.values() if "rl_gpu_utilization_ratio" in v]
        with self._lock:
            self._read_at = self._clock()
            if shares:
                self._busy.append(sum(shares) / len(shares))
                del self._busy[:-3600]

    def utilization(self) -> float | None:
        """Mean utilisation since the last call, 0 to 1; None without a reading. Takes down readings that are too old."""
        with self._lock:
            busy, self._busy = self._busy, []
            stale = self._read_at is not None and self._clock() - self._read_at > STALE_SECONDS
            if stale:
                self._read_at = None
        if stale:
            log.warning("NVML has not answered for %.0f s; rl_gpu_* are taken down until it does", STALE_SECONDS)
            for metric in GPU:
                self._store.forget(metric.name)
        return sum(busy) / len(busy) if busy else None

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.read()

    def _one(self, handle: Any) -> dict[str, float]:
        nvml, found = self._nvml, dict[str, float]()
        calls: dict[str, Callable[[], Mapping[str, float]]] = {
            "utilisation": lambda: {"rl_gpu_utilization_ratio": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100},
            "memory": lambda: _memory(nvml.nvmlDeviceGetMemoryInfo(handle)),
            "power": lambda: {"rl_gpu_power_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000},
            "temperature": lambda: {
                "rl_gpu_temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            },
        }
        for what, call in calls.items():
            try:
                found |= call()
            except nvml.NVMLError as error:  # a MIG slice has no utilisation, a passively cooled board no power
                if what not in self._refused:
                    log.info("NVML gives no %s: %s", what, error)
                self._refused.add(what)
        return found


def _memory(info: Any) -> dict[str, float]:
    return {"rl_gpu_memory_used_bytes": info.used, "rl_gpu_memory_total_bytes": info.total}


def _load() -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        log.debug("nvidia-ml-py is not installed: no GPU metrics from here")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("no NVML on this machine (%s)", error)
        return None
    return nvml


def _handles(nvml: Any, environment: Mapping[str, str]) -> dict[str, Any]:
    """GPU number (or UUID, as it was named) -> handle, of the GPUs that this process may use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        if visible is None:
            return {str(n): nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())}
        handles = {}
        for name in filter(None, (part.strip() for part in visible.split(","))):
            if name == "-1":
                break  # CUDA stops at the first number that is no device
            by_index = name.isdigit()
            handles[name] = (
                nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name)
            )
        return handles
    except nvml.NVMLError as error:
        log.warning("NVML does not know the GPUs of this process: %s", error)
        return {}
