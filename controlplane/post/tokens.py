"""Tokens of the HTTP transport: who may do what to which runs. Only hashes are kept; a token is shown once, when it is made.

A token has 256 random bits, so its SHA-256 needs no salt and cannot be guessed from the file. Scopes do not include each
other: an agent's token cannot approve, and a person's cannot pretend to be a trainer.
"""

import hashlib
import hmac
import os
import secrets
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlplane.contract.rundir import write_atomic
from controlplane.post.directory import locked, read_bounded

LARGEST_FILE = 1024 * 1024
LONGEST_TOKEN = 200


class Scope(StrEnum):
    """read: documents of a run. approve: answer decisions. act: pause, resume, stop, checkpoint. agent: be its trainer."""

    read = "read"
    approve = "approve"
    act = "act"
    agent = "agent"


class TokenError(ValueError):
    """The tokens file cannot be used; one sentence, without anything secret."""


class Token(BaseModel):
    """One line of the tokens file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=200)
    """Who holds it; stands as `by` in approvals and orders."""
    scopes: frozenset[Scope] = Field(min_length=1)
    runs: frozenset[str] = frozenset({"*"})
    """Ids of the runs that it is for; `*` is all of them."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def may(self, scope: Scope, run: str) -> bool:
        return scope in self.scopes and ("*" in self.runs or run in self.runs)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: list[Token] = []


class Tokens:
    """The tokens of a server, read from a file of mode 0600."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens

    @classmethod
    def load(cls, path: Path) -> "Tokens":
        """Raises TokenError: missing, readable by others, or damaged."""
        return cls(_read(path).tokens)

    def holder(self, presented: str) -> Token | None:
        """Whose token this is. Takes the same time whichever it is, and whether it is one."""
        digest = _digest(presented[:LONGEST_TOKEN])
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found


def add(path: Path, name: str, scopes: frozenset[Scope], runs: frozenset[str]) -> str:
    """Make a token and keep its hash; the token, which is nowhere else."""
    with locked(path.parent):
        file = _read(path) if path.exists() else _File()
        if any(token.name == name for token in file.tokens):
            raise TokenError(f"{path}: has a token named {name} already; remove it first")
        token = f"scalerl_{secrets.token_urlsafe(32)}"
        file.tokens.append(Token(name=name, scopes=scopes, runs=runs, sha256=_digest(token)))
        write_atomic(path, file.model_dump_json(indent=1) + "\n", mode=0o600, durable=True)
    return token


def remove(path: Path, name: str) -> None:
    """Take a token out; running servers notice at their next request."""
    with locked(path.parent):
        file = _read(path)
        kept = [token for token in file.tokens if token.name != name]
        if len(kept) == len(file.tokens):
            raise TokenError(f"{path}: has no token named {name}")
        write_atomic(path, _File(tokens=kept).model_dump_json(indent=1) + "\n", mode=0o600, durable=True)


def listed(path: Path) -> list[Token]:
    """All tokens of a file; of a token that is its hash."""
    return _read(path).tokens


def _read(path: Path) -> _File:
    try:
        mode = os.stat(path).st_mode
        if mode & 0o077:
            raise TokenError(f"{path}: may be read by others (mode {mode & 0o777:o}); it must be 600")
        return _File.model_validate_json(read_bounded(path, LARGEST_FILE))
    except FileNotFoundError:
        raise TokenError(f"{path}: there is no tokens file; make one with `scalerl token add`") from None
    except OSError as error:
        raise TokenError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValidationError as error:
        raise TokenError(f"{path}: is not a tokens file ({error.error_count()} errors)") from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
