"""A recorded tiny run: it learns, a person's typo multiplies the learning rate at step 85, it collapses, the controller rolls
it back, it recovers and ends. 22 minutes of a real `scalerl demo` on a loaded two-core machine, both pages every four
seconds (`make.py` says how); where a page did not answer in time, the record has a hole, as in life.

    with serve(tmp_path, end=time.time()) as url:      a real Prometheus that has the run, ending at `end`, with our rules
        ...
"""

import contextlib
import json
import lzma
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx

from controlplane.alerts import limits, rule_files
from controlplane.contract.documents import Observed
from controlplane.policy import load
from controlplane.snapshot import series_id
from tests.programs import require_program

METRICS = Path(__file__).parent / "run.om.xz"
OBSERVED = Path(__file__).parent / "observed.jsonl.xz"
RUN = "golden"
"""Value of the target label `run`."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Page:
    """One scrape of trainer and controller together, as the built-in scraper would give it."""

    at: float
    values: dict[str, float]


def lines(end: float | None = None) -> Iterator[str]:
    """The record as OpenMetrics. With `end` all times, and values that are unix times, are moved so that it ends then."""
    shift = 0.0 if end is None else end - ends_at()
    for line in _text():
        if line.startswith("#"):
            yield line
            continue
        head, value, at = line.rsplit(" ", 2)
        if "_timestamp_seconds" in head and value != "NaN":
            value = repr(float(value) + shift)
        yield f"{head} {value} {float(at) + shift:.3f}\n"


def pages(job: str = "scalerl-trainer") -> list[Page]:
    """Every scrape in order, of one job; target labels are left out."""
    found: dict[float, dict[str, float]] = {}
    for line in _text():
        if line.startswith("#"):
            continue
        head, value, at = line.rsplit(" ", 2)
        series, of = _series(head)
        if of == job and not series.startswith("up"):
            found.setdefault(float(at), {})[series] = float(value)
    return [Page(at, found[at]) for at in sorted(found)]


@cache
def _series(head: str) -> tuple[str, str]:
    """Series id without target labels, and the job."""
    name, _, inner = head.removesuffix("}").partition("{")
    labels = dict(_LABEL.findall(inner))
    job = labels.pop("job")
    labels.pop("run")
    return series_id(name, labels), job


def observed() -> list[tuple[float, Observed]]:
    """(time, document) for every change of what the trainer's agent said."""
    with lzma.open(OBSERVED, "rt") as file:
        rows = [line.partition(" ") for line in file]
    return [(float(at), Observed.model_validate(json.loads(body))) for at, _, body in rows]


@contextlib.contextmanager
def serve(folder: Path, end: float | None = None, policy: str = "lecture") -> Iterator[str]:
    """A real Prometheus on loopback that holds the run, recording rules computed for all of it; its address.

    `end` is when the run ends; now by default. Skips the test where Prometheus is not installed.
    """
    end = time.time() if end is None else end
    program, promtool = require_program("prometheus"), require_program("promtool")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.om").write_text("".join(lines(end)))
    _run(promtool, "tsdb", "create-blocks-from", "openmetrics", str(folder / "run.om"), str(folder / "tsdb"))
    for name, text in rule_files(limits(load(policy))).items():
        (folder / name).write_text(text)
    # Rule evaluation of now needs the rules; what the recording rules would have given then is computed below.
    (folder / "prometheus.yml").write_text(json.dumps({"rule_files": [f"{folder}/rl-*.yaml"]}))
    start = end - (ends_at() - _first())
    with _server(program, folder) as url:
        span = [f"--start={start:.0f}", f"--end={end:.0f}", "--eval-interval=15s", f"--url={url}"]
        rules = str(folder / "rl-recording.yaml")
        _run(promtool, "tsdb", "create-blocks-from", "rules", *span, f"--output-dir={folder / 'tsdb'}", rules)
    with _server(program, folder) as url:
        yield url


@contextlib.contextmanager
def _server(program: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--storage.tsdb.retention.time=10y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.cors.origin=.*",
    ]
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _ready(url):
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _text() -> Iterator[str]:
    with lzma.open(METRICS, "rt") as file:
        yield from file


def _times() -> list[float]:
    return [float(line.rsplit(" ", 1)[1]) for line in _text() if line.startswith("up{")]


def _first() -> float:
    return min(_times())


def ends_at() -> float:
    """Unix time of the last scrape, as recorded."""
    return max(_times())
