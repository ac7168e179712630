import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from controlplane.contract.yamlfile import FileError
from controlplane.recorded.prometheus import read_prometheus

START = 1_800_000_000.0
SERIES = {
    'sum(rl_trainer_global_step{run="r"})': [0, 1, 1, 2, 3, 3],
    'sum(rl_rollout_samples_total{run="r",outcome="pass"})': [10, 20, 20, 50, 70, 70],
    'sum(rl_rollout_samples_total{run="r",outcome="fail"})': [30, 60, 60, 70, 90, 90],
    'sum(rl_rollout_truncated_total{run="r",reason="length"})': [0, 4, 4, 8, 8, 8],
    'sum(rl_trainer_grad_norm{run="r"})': [0.5, 0.6, 0.6, float("nan"), 0.8, 0.8],
    'sum(rl_trainer_nonfinite_total{run="r"})': [0, 0, 0, 2, 2, 2],
    'sum(rl_eval_pass_ratio{run="r"})': [0.2, 0.2, 0.2, 0.2, 0.4, 0.4],
    'sum(rl_eval_last_step{run="r"})': [0, 0, 0, 0, 3, 3],
}


class Answers(BaseHTTPRequestHandler):
    body = ""

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["query"][0]
        values = [[START + 15 * i, str(value)] for i, value in enumerate(SERIES.get(asked, []))]
        result = [{"metric": {}, "values": values}] if values else []
        text = self.body or json.dumps({"status": "success", "data": {"result": result}})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@contextmanager
def server(body: str = "") -> Iterator[str]:
    handler = type("Handler", (Answers,), {"body": body})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


def test_rows_are_the_differences_between_two_steps() -> None:
    with server() as url:
        table = read_prometheus(url, "r", 1.0)
    assert table.step.tolist() == [1, 2, 3]
    assert table.columns["pass_rate"].tolist() == [0.25, 0.75, 0.5]
    assert table.columns["truncation"].tolist() == [0.1, 0.1, 0.0]
    assert table.columns["nonfinite"].tolist() == [0, 1, 0]
    assert table.points("eval_pass_rate")[2].tolist() == [0.4]
    assert table.columns["clock"].tolist() == [START + 15, START + 45, START + 60]


def test_an_unknown_run_a_dead_server_and_nonsense_are_one_sentence_each() -> None:
    with server() as url:
        with pytest.raises(FileError, match="has no samples"):
            read_prometheus(url, "other", 1.0)
        with pytest.raises(FileError, match="no name that a selector can hold"):
            read_prometheus(url, 'r"} or vector(1)', 1.0)
    with pytest.raises(FileError, match="cannot be read"):
        read_prometheus(url, "r", 1.0)
    with server("<html>") as url, pytest.raises(FileError, match="cannot be read"):
        read_prometheus(url, "r", 1.0)
    with server('{"status": "error", "error": "too many points"}') as url, pytest.raises(FileError, match="too many"):
        read_prometheus(url, "r", 1.0)
