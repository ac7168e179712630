"""Is monitoring in order? Target files, pages, configuration, and a server if there is one; one line each."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlplane.contract.metrics import SAMPLES
from controlplane.contract.rundir import RunDir
from controlplane.prometheus.targets import run_directories
from controlplane.sources import PrometheusSource, ScrapeSource, SourceError


@dataclass(frozen=True)
class Line:
    """What was looked at. `ok` is None for something that is not there and need not be."""

    ok: bool | None
    text: str


def check(runs: Path, data: Path, server: str = "") -> Iterator[Line]:
    """Look at every run below `runs`, the files in `data`, and the Prometheus at `server` if one is named."""
    rundirs = run_directories(runs)
    if not rundirs:
        yield Line(None, f"{runs}: no run directory yet")
    for rundir in rundirs:
        yield from _run(rundir, server)
    yield from _files(data)


def _run(rundir: RunDir, server: str) -> Iterator[Line]:
    name = rundir.read_info().name
    for who, target in (("trainer", rundir.target), ("controller", rundir.controller_target)):
        if not target.exists():
            yield Line(None, f"{name}: no {who} is running")
            continue
        try:
            values = ScrapeSource(target).read_all().values
        except SourceError as error:
            yield Line(False, f"{name}: {error}")
            continue
        foreign = sorted({key.partition("{")[0] for key in values} - SAMPLES.keys())
        unknown = f", of which unknown: {', '.join(foreign[:3])}" if foreign else ""
        yield Line(not foreign, f"{name}: {who} at {_address(target)} exports {len(values)} series{unknown}")
        if server and who == "trainer":
            yield _through(server, name)


def _through(server: str, name: str) -> Line:
    try:
        sample = PrometheusSource(server, name).read({"rl_trainer_start_timestamp_seconds", "rl_trainer_global_step"})
    except SourceError as error:
        return Line(False, str(error))
    return Line(bool(sample.values), f"{name}: Prometheus at {server} has it")


def _files(data: Path) -> Iterator[Line]:
    config, promtool = data / "prometheus.yml", shutil.which("promtool")
    if not config.exists():
        yield Line(None, f"{config}: not written yet (scalerl prometheus config)")
        return
    if promtool is None:
        yield Line(None, "promtool is not on PATH: configuration and rules are not checked")
        return
    for kind, files in (("config", [config]), ("rules", sorted((data / "rules").glob("*.yaml")))):
        command = [promtool, "check", kind, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
        words = "fine" if done.returncode == 0 else (done.stderr or done.stdout).strip().splitlines()[-1]
        yield Line(done.returncode == 0, f"promtool check {kind}: {words}")


def _address(target: Path) -> str:
    return str(json.loads(target.read_text())[0]["targets"][0])
