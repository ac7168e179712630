"""`scalerl serve` and `token`: the HTTP transport. `scalerl approve`, `deny`, `checkpoint`, `pause`, `resume`, `stop`: what
people say to a run, by its directory or over HTTP; the controller of the run carries it out and writes it down."""

import getpass
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import FileError
from controlplane.post import tokens
from controlplane.post.said import say
from controlplane.post.tokens import Scope, TokenError

TokensOption = Annotated[Path, typer.Option("--tokens", help="Tokens file, mode 0600; made by `scalerl token add`.")]
RunOrUrl = Annotated[
    str, typer.Argument(metavar="RUN", help="Run directory, or https://HOST:PORT/v1/runs/ID with SCALERL_TOKEN set.")
]
WhyOption = Annotated[str, typer.Option("--why", help="Your reason, for the journal.")]

token_app = typer.Typer(help="Tokens of the HTTP transport.", no_args_is_help=True, rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Register every command of this room."""
    app.command()(serve)
    app.add_typer(token_app, name="token")
    app.command()(approve)
    app.command()(deny)
    for action, help_ in _ORDERS.items():
        app.command(action, help=f"{help_} The controller of the run passes it on and writes it down.")(_order(action))


def serve(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder of run directories, as the controllers see them.")
    ],
    tokens_file: TokensOption,
    host: Annotated[str, typer.Option(help="Interface; anything but loopback needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 9411,
    certificate: Annotated[Path | None, typer.Option("--cert", help="Certificate chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its private key, PEM.")] = None,
) -> None:
    """Let agents fetch and deliver their documents over HTTP, and people speak, into the run directories below ROOT.

    A trainer elsewhere gives its agent the address and a token; its run appears as ROOT/<run id>, and `scalerl control`
    on that directory controls it. Killing the server loses nothing.
    """
    try:
        from controlplane.post.server import Door, Server
    except ModuleNotFoundError as error:
        raise FileError(
            f"serve: {error.name} is missing; it needs the extra `server`: pip install 'scalerl[server]'"
        ) from None
    root.mkdir(parents=True, exist_ok=True)
    try:
        server = Server(Door(root, tokens_file), host, port, certificate, key)
    except ValueError as error:
        raise FileError(str(error)) from None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    bound = server.start()
    typer.echo(f"serves {root} on {'https' if certificate else 'http'}://{host}:{bound}")
    stop.wait()
    server.stop()


@token_app.command("add")
def token_add(
    name: Annotated[str, typer.Argument(help="Who holds it; stands in the journal beside what they say.")],
    scope: Annotated[list[Scope], typer.Option("--scope", help="What it may do. Repeatable.")],
    tokens_file: TokensOption,
    run: Annotated[list[str] | None, typer.Option("--run", help="Only for runs with these ids. Repeatable.")] = None,
) -> None:
    """Make a token and print it, once: only its hash is kept."""
    tokens_file.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(_checked(tokens.add, tokens_file, name, frozenset(scope), frozenset(run or ["*"])))


@token_app.command("remove")
def token_remove(name: Annotated[str, typer.Argument(help="Whose token.")], tokens_file: TokensOption) -> None:
    """Take a token back. A running server notices at its next request."""
    _checked(tokens.remove, tokens_file, name)


@token_app.command("list")
def token_list(tokens_file: TokensOption) -> None:
    """Show who may do what. The tokens themselves are nowhere."""
    for token in _checked(tokens.listed, tokens_file):
        typer.echo(f"{token.name:<20} {', '.join(sorted(token.scopes)):<30} {', '.join(sorted(token.runs))}")


def approve(
    run: RunOrUrl, decision_id: Annotated[str, typer.Argument(metavar="DECISION")], why: WhyOption = ""
) -> None:
    """Approve a decision that waits for a person; `scalerl log RUN` shows its id."""
    _answer(run, decision_id, "approve", why)


def deny(run: RunOrUrl, decision_id: Annotated[str, typer.Argument(metavar="DECISION")], why: WhyOption = "") -> None:
    """Refuse a decision that waits for a person."""
    _answer(run, decision_id, "deny", why)


_ORDERS: dict[Literal["checkpoint", "pause", "resume", "stop"], str] = {
    "checkpoint": "Ask the trainer to write a checkpoint at its next step boundary.",
    "pause": "Ask the trainer to pause at its next step boundary.",
    "resume": "Ask a paused trainer to go on.",
    "stop": "Ask the trainer to write a checkpoint and end.",
}


def _order(action: Literal["checkpoint", "pause", "resume", "stop"]) -> Any:
    def command(run: RunOrUrl, why: WhyOption = "") -> None:
        if _is_url(run):
            _post(run, "orders", {"action": action, "reason": why})
        else:
            _say(run, Order(order_id=secrets.token_hex(8), action=action, by=_me(), at=time.time(), reason=why))
        typer.echo(f"asked to {action}; `scalerl log` shows what became of it")

    return command


def _answer(run: str, decision_id: str, answer: Literal["approve", "deny"], why: str) -> None:
    if _is_url(run):
        _post(run, "approvals", {"decision_id": decision_id, "answer": answer, "reason": why})
    else:
        _say(run, Approval(decision_id=decision_id, answer=answer, by=_me(), at=time.time(), reason=why))
    typer.echo(f"{decision_id}: {answer}; the controller reads it at its next look")


def _say(run: str, word: Approval | Order) -> None:
    if not RunDir(Path(run)).info.exists():
        raise FileError(f"{run}: is not a run directory (it has no run.json)")
    try:
        say(RunDir(Path(run)), word)
    except (OSError, ValueError) as error:
        raise FileError(f"{run}: speaking to a run needs the key that its trainer wrote: {error}") from None


def _post(url: str, what: str, body: dict[str, str]) -> None:
    token = os.environ.get("SCALERL_TOKEN", "")
    if not token:
        raise FileError("SCALERL_TOKEN: must hold a token with the scope for this")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(timeout=10, trust_env=False, follow_redirects=False) as client:
        try:
            answer = client.post(f"{url.rstrip('/')}/{what}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise OSError(f"{url} cannot be reached ({error or type(error).__name__})") from None
    if answer.status_code not in (200, 204):
        raise FileError(f"{url}: status {answer.status_code} {answer.text[:300]}")


def _is_url(run: str) -> bool:
    return run.startswith(("http://", "https://"))


def _me() -> str:
    """Who speaks, as this machine knows them: whoever may read the run's key may speak for it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"uid {os.getuid()}@{socket.gethostname()}"


def _checked(act: Any, *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except TokenError as error:
        raise FileError(str(error)) from None
