"""A Grafana that knows the documented part of its HTTP API and refuses everything else: other paths, wrong tokens, wrong bodies."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glsa_stub_1234"


@dataclass
class Stub:
    """State of the server, and everything it was asked."""

    url: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    provisioned: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Dashboards that the server will not take."""
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What was asked and is not in the documentation."""
    failing: list[int] = field(default_factory=list)
    """Statuses for the next requests."""


class _Wrong(Exception):
    pass


def _want(body: Any, required: dict[str, type], optional: dict[str, type] | None = None) -> None:
    if not isinstance(body, dict):
        raise _Wrong("the body is no object")
    allowed = {**required, **(optional or {})}
    if missing := required.keys() - body.keys():
        raise _Wrong(f"missing {sorted(missing)}")
    if unknown := body.keys() - allowed.keys():
        raise _Wrong(f"unknown {sorted(unknown)}")
    for key, value in body.items():
        if not isinstance(value, allowed[key]):
            raise _Wrong(f"{key} is {type(value).__name__}")


def _annotation(body: Any) -> dict[str, Any]:
    _want(body, {"time": int, "tags": list, "text": str}, {"timeEnd": int})
    if not all(isinstance(tag, str) for tag in body["tags"]) or body["time"] < 10**12:
        raise _Wrong("tags are not words, or times not in milliseconds")
    return dict(body)


class _Handler(BaseHTTPRequestHandler):
    stub: Stub

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _any(self) -> None:
        stub, parts = self.stub, urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length)
        stub.asked.append((self.command, parts.path))
        if stub.failing:
            return self._answer(stub.failing.pop(0), {"message": "not now"})
        try:
            body = json.loads(raw) if raw else None
            if raw and self.headers.get("Content-Type") != "application/json":
                raise _Wrong("a body that is not called JSON")
            if parts.path == "/hook/s3cret":
                stub.hooks.append(body)
                return self._answer(200, {})
            if parts.path != "/api/health" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"message": "Invalid API key"})
            self._answer(*self._route(parts.path, parse_qs(parts.query), body))
        except _Wrong as error:
            stub.wrong.append(f"{self.command} {self.path}: {error}")
            self._answer(400, {"message": str(error)})

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _any

    def _route(self, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        stub = self.stub
        match [self.command, *path.strip("/").split("/")]:
            case ["GET", "api", "health"]:
                return 200, {"database": "ok", "version": "13.2.1", "commit": "abc"}
            case ["GET", "api", "folders", uid]:
                found = stub.folders.get(uid)
                return (200, {"uid": uid, "title": found}) if found else (404, {"message": "folder not found"})
            case ["POST", "api", "folders"]:
                _want(body, {"uid": str, "title": str})
                if body["uid"] in stub.folders:
                    return 409, {"message": "a folder with the same uid already exists"}
                stub.folders[body["uid"]] = body["title"]
                return 200, {"id": 1, **body}
            case ["GET", "api", "dashboards", "uid", uid]:
                if uid in stub.provisioned:
                    return 200, {"dashboard": {"uid": uid}, "meta": {"provisioned": True}}
                if uid not in stub.dashboards:
                    return 404, {"message": "Dashboard not found"}
                return 200, {"dashboard": stub.dashboards[uid], "meta": {"provisioned": False}}
            case ["POST", "api", "dashboards", "db"]:
                _want(body, {"dashboard": dict, "folderUid": str, "overwrite": bool, "message": str})
                if body["folderUid"] not in stub.folders or not re.fullmatch(r"[\w-]{1,40}", body["dashboard"]["uid"]):
                    raise _Wrong("no such folder, or no uid")
                if "id" not in body["dashboard"] or body["dashboard"]["id"] is not None:
                    raise _Wrong("an id of another server")
                if body["dashboard"]["uid"] in stub.refused:
                    return 412, {"message": "A dashboard with the same name already exists", "status": "name-exists"}
                stub.dashboards[body["dashboard"]["uid"]] = body["dashboard"]
                return 200, {"status": "success", "url": f"/d/{body['dashboard']['uid']}/x"}
            case ["POST", "api", "annotations"]:
                number = len(stub.annotations) + 1
                stub.annotations[number] = _annotation(body)
                return 200, {"message": "Annotation added", "id": number}
            case ["PATCH", "api", "annotations", number]:
                if int(number) not in stub.annotations:
                    return 404, {"message": "Annotation not found"}
                stub.annotations[int(number)] = _annotation(body)
                return 200, {"message": "Annotation patched"}
            case ["GET", "api", "annotations"]:
                if query.keys() - {"tags", "limit"} or query.get("limit") != ["1"]:
                    raise _Wrong("unknown parameters")
                wanted = set(query["tags"])
                found = [{"id": n, **a} for n, a in stub.annotations.items() if wanted <= set(a["tags"])]
                return 200, found[:1]
        raise _Wrong("no such path")


@contextmanager
def grafana_stub() -> Iterator[Stub]:
    """A running stub on a free port of loopback."""
    stub = Stub()
    handler = type("Handler", (_Handler,), {"stub": stub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
