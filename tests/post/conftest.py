"""One trainer's agent and one controller's post, joined by a directory or by HTTP; the tests do not know which."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.agent import Agent, DirectoryMailbox, HttpMailbox, Mailbox, read_key
from controlplane.contract.documents import AckState, Desired, Observed
from controlplane.contract.rundir import RunDir
from controlplane.post import Post
from controlplane.post.server import Door, Server
from controlplane.post.tokens import Scope, add
from tests.agent.house import INFO, desired, make_agent, state


class Line(ABC):
    """The two ends. `theirs` is the run directory as the controller sees it."""

    def __init__(self, ours: RunDir, theirs: RunDir) -> None:
        self.ours, self.theirs = ours, theirs

    @abstractmethod
    def mailbox(self) -> Mailbox: ...

    def agent(self) -> Agent:
        """A new process of the trainer, without a thread: it looks into its mailbox at each boundary."""
        return make_agent(self.ours, self.mailbox())  # type: ignore[arg-type]

    @abstractmethod
    def cut(self) -> None:
        """The controller's machine goes away."""

    @abstractmethod
    def mend(self) -> None: ...

    @property
    def post(self) -> Post:
        return Post(self.theirs)

    def publish(self, document: Desired) -> None:
        assert self.post.publish(document.signed(read_key(self.theirs)))

    def observed(self) -> Observed:
        observed, problem = self.post.observed()
        assert observed is not None, problem
        return observed


class DirectoryLine(Line):
    def __init__(self, root: Path) -> None:
        super().__init__(RunDir(root / "run"), RunDir(root / "run"))
        self.ours.root.mkdir()
        self.ours.info.write_text(INFO.model_dump_json())

    def mailbox(self) -> Mailbox:
        return DirectoryMailbox(self.ours)

    def cut(self) -> None:
        self.ours.control.rename(self.ours.root / "away")
        self.ours.control.touch()

    def mend(self) -> None:
        self.ours.control.unlink()
        (self.ours.root / "away").rename(self.ours.control)


class HttpLine(Line):
    def __init__(self, root: Path) -> None:
        super().__init__(RunDir(root / "run"), RunDir(root / "server" / INFO.run_uid))
        self.root, self.tokens = root / "server", root / "tokens.json"
        self.root.mkdir()
        self.ours.root.mkdir()
        self.token = {scope: add(self.tokens, scope, frozenset({scope}), frozenset({INFO.run_uid})) for scope in Scope}
        self.server = Server(Door(self.root, self.tokens))
        self.port = self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mailbox(self, wait: float = 0.0) -> Mailbox:
        return HttpMailbox(self.url, self.token[Scope.agent], self.ours, INFO, wait=wait)

    def cut(self) -> None:
        self.server.stop()

    def mend(self) -> None:
        self.server = Server(Door(self.root, self.tokens), port=self.port)
        self.server.start()


@pytest.fixture(params=[DirectoryLine, HttpLine], ids=["directory", "http"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    line = request.param(tmp_path)
    yield line
    if isinstance(line, HttpLine):
        line.server.stop()


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpLine]:
    line = HttpLine(tmp_path)
    yield line
    line.server.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


__all__ = ["AckState", "DirectoryLine", "HttpLine", "Line", "desired", "state", "wait_for"]
