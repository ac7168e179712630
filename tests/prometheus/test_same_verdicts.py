"""The built-in scraper and Prometheus lead to the same verdicts: one recorded run, judged through both.

The scraper reads pages as the trainer served them, from a real socket; Prometheus holds the same run and is asked for the same
moments. Every finding and every decision must be equal, the rollback included.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controlplane.contract.documents import Observed
from controlplane.decide import Evaluator, Kind
from controlplane.detect import SERIES
from controlplane.policy import load
from controlplane.snapshot import Snapshot
from controlplane.sources import MetricSource, PrometheusSource, ScrapeSource
from tests import golden
from tests.golden import Page


class Replayed:
    """A page server whose clock stands where the test puts it."""

    def __init__(self, folder: Path) -> None:
        self.page = Page(0.0, {})
        replayed = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = "".join(f"{series} {value}\n" for series, value in replayed.page.values.items()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.target = folder / "target.json"
        self.target.write_text(json.dumps([{"targets": [f"127.0.0.1:{self._server.server_port}"], "labels": {}}]))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def now(self) -> float:
        return self.page.at

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def replayed(tmp_path: Path) -> Iterator[Replayed]:
    server = Replayed(tmp_path)
    yield server
    server.close()


def verdict(evaluator: Evaluator, source: MetricSource, at: float, observed: Observed) -> dict[str, Any]:
    sample = source.read(SERIES)
    snapshot = Snapshot(at=at + 0.1, sampled_at=sample.at, metrics=sample.values, observed=observed)
    judgement, decision = evaluator.look(snapshot)
    findings = {name: repr(asdict(finding)) for name, finding in judgement.findings.items()}
    return {"decision": decision.model_dump_json(), "findings": findings, "kind": decision.kind}


@pytest.mark.slow
def test_scraper_and_prometheus_give_the_same_verdicts_on_the_same_run(tmp_path: Path, replayed: Replayed) -> None:
    policy, documents = load("demo"), golden.observed()
    kinds = []
    with golden.serve(tmp_path / "prometheus", golden.ends_at()) as url:
        scraper = ScrapeSource(replayed.target, clock=lambda: replayed.now)
        server = PrometheusSource(url, golden.RUN, clock=lambda: replayed.now, past=lambda: replayed.now)
        here, there = Evaluator(policy), Evaluator(policy)
        for page in until_recovery(golden.pages()):
            replayed.page = page
            observed = [document for at, document in documents if at <= page.at + 0.5][-1]
            ours = verdict(here, scraper, page.at, observed)
            theirs = verdict(there, server, page.at, observed)
            assert ours == theirs, f"{page.at}: step {page.values['rl_trainer_global_step']}"
            kinds.append(ours["kind"])
    assert len(kinds) > 60
    assert Kind.act in kinds, "the fault of the recorded run was not acted on, so the comparison shows little"


def until_recovery(pages: list[Page]) -> Iterator[Page]:
    """Pages with a new step, until some steps after the rollback."""
    before = -1.0
    for page in pages:
        step, branch = (page.values.get(f"rl_trainer_{name}", -1.0) for name in ("global_step", "branch"))
        if step not in (-1.0, before):
            yield page
        if branch == 1 and step > 75:
            return
        before = step
