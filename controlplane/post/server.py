"""The HTTP transport, controller side: a door to the control directories below one root. No state of its own.

    PUT  /v1/runs/{run}             agent     who the run is, and the key that its documents are signed with; once
    GET  /v1/runs/{run}/desired     agent     long poll: `?wait=25`, `If-None-Match` with the last `ETag`; 304 when nothing came
    PUT  /v1/runs/{run}/observed    agent     the newest observed document
    GET  /v1/runs/{run}/observed    read      the same, for people and programs
    PUT  /v1/runs/{run}/probes/{id} agent     whole lines of a probe's record, `?at=` the length that it has here; else 409 says it
    POST /v1/runs/{run}/approvals   approve   {decision_id, answer, reason}
    POST /v1/runs/{run}/orders      act       {action, reason}

Every request carries `Authorization: Bearer TOKEN`. A killed server loses nothing: agents come back, files are whole. The
name of the token's holder becomes `by`; the server signs for them with the key of the run. It needs the extra `server`.
"""

import asyncio
import hashlib
import hmac
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from controlplane.agent import read_key
from controlplane.agent.shipping import LARGEST_PIECE, LARGEST_RECORD
from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Observed
from controlplane.contract.rundir import RunDir, RunInfo, write_atomic
from controlplane.post.directory import LARGEST, locked, read_bounded
from controlplane.post.said import say
from controlplane.post.tokens import Scope, Token, TokenError, Tokens

LONGEST_WAIT = 55.0
"""Seconds; proxies on the way like to cut connections after a minute."""
LOOK_SECONDS = 0.1
BODY_SECONDS = 10.0
SMALL_BODY = 64 * 1024
MOST_CONNECTIONS = 2000
MOST_RECORDS = 1000
_RECORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Registration(BaseModel):
    """What an agent says when it first comes."""

    model_config = ConfigDict(extra="forbid")

    info: RunInfo
    key: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    decision_id: str
    answer: Literal["approve", "deny"]
    reason: str = ""


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: Literal["checkpoint", "pause", "resume", "stop"]
    reason: str = ""


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


Endpoint = Callable[[Request, Token, str], Awaitable[Response]]


class Door:
    """Endpoints over the run directories below `root`, for holders of tokens in the file `tokens`."""

    def __init__(self, root: Path, tokens: Path, clock: Callable[[], float] = time.time) -> None:
        self._root, self._file, self._clock = root, tokens, clock
        self._tokens, self._mark = Tokens.load(tokens), _mark(tokens)
        self._known: dict[str, RunDir] = {}

    def app(self) -> Starlette:
        """The ASGI application."""
        run = "/v1/runs/{run}"
        return Starlette(
            routes=[
                Route(run, self._for(Scope.agent, self._register), methods=["PUT"]),
                Route(f"{run}/desired", self._for(Scope.agent, self._desired), methods=["GET"]),
                Route(f"{run}/observed", self._for(Scope.agent, self._put_observed), methods=["PUT"]),
                Route(f"{run}/observed", self._for(Scope.read, self._get_observed), methods=["GET"]),
                Route(run + "/probes/{probe}", self._for(Scope.agent, self._put_record), methods=["PUT"]),
                Route(f"{run}/approvals", self._for(Scope.approve, self._approve), methods=["POST"]),
                Route(f"{run}/orders", self._for(Scope.act, self._order), methods=["POST"]),
            ]
        )

    # Who may come in

    def _for(self, scope: Scope, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                run = request.path_params["run"]
                token = self._admit(request, scope, run)
                return await endpoint(request, token, run)
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "body"
                return JSONResponse({"error": f"{place}: {first['msg']}"}, 400)
            except (OSError, ValueError) as error:
                return JSONResponse({"error": f"the control directory of this run cannot be used: {error}"}, 503)

        return handle

    def _admit(self, request: Request, scope: Scope, run: str) -> Token:
        kind, _, presented = request.headers.get("authorization", "").partition(" ")
        token = self._current().holder(presented.strip()) if kind.lower() == "bearer" else None
        if token is None:
            raise Refused(401, "a token is needed: Authorization: Bearer TOKEN")
        if not token.may(scope, run):
            raise Refused(403, f"this token does not have the scope {scope} for this run")
        if not _RUN.fullmatch(run):
            raise Refused(404, "no such run")
        return token

    def _current(self) -> Tokens:
        """The tokens as the file has them now; a file that became unusable lets nobody in."""
        try:
            if (mark := _mark(self._file)) != self._mark:
                self._tokens, self._mark = Tokens.load(self._file), mark
        except TokenError as error:
            raise Refused(503, "the tokens of this server cannot be read") from error
        return self._tokens

    def _dir(self, run: str) -> RunDir:
        if run not in self._known:
            for info in self._root.glob("*/run.json"):
                rundir = RunDir(info.parent)
                try:
                    self._known[rundir.read_info().run_uid] = rundir
                except (OSError, ValueError):
                    continue
        if run not in self._known:
            raise Refused(404, "no such run")
        return self._known[run]

    # The agent

    async def _register(self, request: Request, _: Token, run: str) -> Response:
        said = Registration.model_validate_json(await _body(request, SMALL_BODY))
        if said.info.run_uid != run:
            raise Refused(400, f"the document is about run {said.info.run_uid}")
        await run_in_threadpool(self._enrol, said)
        return Response(status_code=204)

    def _enrol(self, said: Registration) -> None:
        """Make the directory of a new run; of a known one the key must be the same, or somebody else speaks for it."""
        with locked(self._root):
            try:
                rundir = self._dir(said.info.run_uid)
            except Refused:
                rundir = RunDir(self._root / said.info.run_uid)
                write_atomic(rundir.key, said.key + "\n", mode=0o600, durable=True)
                write_atomic(rundir.info, said.info.model_dump_json(indent=1) + "\n", durable=True)
                return
        if not hmac.compare_digest(read_key(rundir).hex(), said.key):
            raise Refused(409, "this run is known here under another key")

    async def _desired(self, request: Request, _: Token, run: str) -> Response:
        path, seen = self._dir(run).desired, request.headers.get("if-none-match", "")
        deadline, mark = time.monotonic() + _wait(request), None
        while True:
            if (now := _mark(path)) != mark:
                mark = now
                data = await run_in_threadpool(_read, path)
                tag = f'"{hashlib.sha256(data).hexdigest()}"'
                if data and tag != seen:
                    return Response(data, media_type="application/json", headers={"ETag": tag})
            if time.monotonic() >= deadline or await request.is_disconnected():
                return Response(status_code=304)
            await asyncio.sleep(LOOK_SECONDS)

    async def _put_observed(self, request: Request, _: Token, run: str) -> Response:
        observed = Observed.model_validate_json(await _body(request, LARGEST))
        if observed.run_uid != run:
            raise Refused(400, f"the document is about run {observed.run_uid}")
        await run_in_threadpool(write_atomic, self._dir(run).observed, observed.model_dump_json())
        return Response(status_code=204)

    async def _put_record(self, request: Request, _: Token, run: str) -> Response:
        probe, piece = request.path_params["probe"], await _body(request, LARGEST_PIECE)
        at = request.query_params.get("at", "")
        if not _RECORD.fullmatch(probe) or not at.isascii() or not at.isdigit() or len(at) > 12:
            raise Refused(400, "probes: needs the id of a probe, and ?at= a number of bytes")
        if piece and not piece.endswith(b"\n"):
            raise Refused(400, "the body must be whole lines")
        length = await run_in_threadpool(_append, self._dir(run).probes, f"{probe}.jsonl", int(at), piece)
        if length != int(at):
            return JSONResponse({"error": f"the record has {length} bytes here", "length": length}, 409)
        return Response(status_code=204)

    # People and programs

    async def _get_observed(self, _request: Request, _: Token, run: str) -> Response:
        data = await run_in_threadpool(_read, self._dir(run).observed)
        return Response(data, media_type="application/json") if data else Response(status_code=204)

    async def _approve(self, request: Request, token: Token, run: str) -> Response:
        said = _Answer.model_validate_json(await _body(request, SMALL_BODY))
        word = Approval(**said.model_dump(), by=token.name, at=self._clock())
        await run_in_threadpool(say, self._dir(run), word)
        return Response(status_code=204)

    async def _order(self, request: Request, token: Token, run: str) -> Response:
        said = _Wish.model_validate_json(await _body(request, SMALL_BODY))
        word = Order(**said.model_dump(), order_id=os.urandom(8).hex(), by=token.name, at=self._clock())
        await run_in_threadpool(say, self._dir(run), word)
        return JSONResponse({"order_id": word.order_id})


class Server:
    """Serves a door in a thread. Loopback, or TLS: `certificate` and `key` are files in PEM.

    Raises:
        TokenError: the tokens file cannot be used.
        ValueError: the interface is open to others and there is no TLS.
    """

    def __init__(
        self,
        door: Door,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        if host not in ("127.0.0.1", "::1", "localhost") and not (certificate and key):
            raise ValueError(f"{host} can be reached by others: give a certificate and its key, or listen on 127.0.0.1")
        tls: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key} if certificate and key else {}
        config = uvicorn.Config(
            door.app(),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,  # nothing about a request is worth a line, and a header must never be in one
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=2,
            **tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="post-server", daemon=True)

    def start(self) -> int:
        """Listen; the port. Raises OSError when it cannot be had."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError("the server could not listen; is its port taken?")
            time.sleep(0.01)
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Answer what is being answered, then end."""
        self._server.should_exit = True
        self._thread.join(timeout=10)


async def _body(request: Request, most: int) -> bytes:
    """The whole body, in bounded size and time."""
    body = bytearray()

    async def collect() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > most:
                raise Refused(413, f"the body is larger than {most} bytes")

    try:
        await asyncio.wait_for(collect(), BODY_SECONDS)
    except (TimeoutError, ClientDisconnect):
        raise Refused(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return bytes(body)


def _append(folder: Path, name: str, at: int, piece: bytes) -> int:
    """Append to a record if it is `at` bytes long; the length it had."""
    with locked(folder):
        path = folder / name
        length = path.stat().st_size if path.exists() else 0
        if length == at:
            if length + len(piece) > LARGEST_RECORD:
                raise Refused(413, f"the record of a probe may have {LARGEST_RECORD} bytes")
            if not length and sum(1 for _ in folder.glob("*.jsonl")) >= MOST_RECORDS:
                raise Refused(413, f"a run may have {MOST_RECORDS} probes")
            with path.open("ab") as file:
                file.write(piece)
        return length


def _wait(request: Request) -> float:
    try:
        return min(max(0.0, float(request.query_params.get("wait", "0"))), LONGEST_WAIT)
    except ValueError:
        raise Refused(400, "wait: must be a number of seconds") from None


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, LARGEST)
    except FileNotFoundError:
        return b""


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever a file is replaced; None while it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
