"""Whatever lies where a document or a file of settings is expected: one clear error, no crash, no action, bounded memory."""

import contextlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.agent.mailbox import LARGEST_DOCUMENT, parse
from controlplane.contract.documents import Ack, AckState, Desired, Observed
from controlplane.contract.rundir import RunDir
from controlplane.contract.yamlfile import LARGEST, FileError
from controlplane.policy import find
from controlplane.policy import parse as parse_policy
from controlplane.post import Post
from tests.agent.house import MemoryMailbox, desired, make_agent, send, state

KEY = b"k" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*Desired.model_fields, "x"]), inner, max_size=6)
    ),
    max_leaves=12,
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A document with a few bytes changed, cut, doubled or put elsewhere."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + rng.randint(1, 30)]
            case 2:
                out[at:at] = out[: rng.randint(0, 40)]
            case 3:
                out[at:at] = rng.choice(
                    [b"{", b"]", b'"', b"null", b"1e999", b"-1", b"\\u0000", b"\xed\xa0\x80", b"NaN"]
                )
    return bytes(out)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_are_rejected_with_a_reason_of_bounded_length(data: bytes) -> None:
    answer = parse(data, KEY)
    assert isinstance(answer, Ack)
    assert answer.state is AckState.rejected
    assert 0 < len(answer.reason) < 2000
    Ack.model_validate_json(answer.model_dump_json())


def test_no_mutation_of_a_signed_document_is_acted_on(rundir: RunDir) -> None:
    mailbox, rng = MemoryMailbox(), random.Random(1)
    agent = make_agent(rundir, mailbox)
    send(mailbox, rundir, desired(agent, scale=0.5))
    assert mailbox.desired is not None
    original, document = mailbox.desired, json.loads(mailbox.desired)
    for step in range(300):
        mailbox.desired = mutated(original, rng)
        with contextlib.suppress(ValueError):
            if json.loads(mailbox.desired) == document:
                continue  # only the spacing differs
        assert agent.boundary(state(agent, step)) is None, mailbox.desired
    mailbox.desired = original
    assert agent.boundary(state(agent, 301)) is not None


@pytest.mark.parametrize(
    "data",
    [b"[" * LARGEST_DOCUMENT, b"9" * 200_000, b'{"decision_id":"' + b"x" * 200_000 + b'"}', b"{" * 1000, b"\0" * 1000],
)
def test_hostile_bytes_cost_bounded_memory(data: bytes) -> None:
    tracemalloc.start()
    assert isinstance(parse(data, KEY), Ack)
    assert tracemalloc.get_traced_memory()[1] < 40 * LARGEST_DOCUMENT
    tracemalloc.stop()


def test_no_mutation_of_an_observed_document_stops_the_controller(rundir: RunDir) -> None:
    mailbox, rng = MemoryMailbox(), random.Random(2)
    agent = make_agent(rundir, mailbox)
    agent.boundary(state(agent))
    assert mailbox.observed is not None
    original = mailbox.observed.model_dump_json().encode()
    post = Post(rundir)
    refused = 0
    for _ in range(300):
        rundir.observed.write_bytes(mutated(original, rng))
        observed, problem = post.observed()
        assert (observed is None) == bool(problem)
        assert isinstance(observed, Observed | None)
        refused += observed is None
    assert refused > 200


@pytest.fixture
def rundir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


# Files of settings


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (BOMB, "aliases"),
        ("[" * 50_000, "nested too deep|not valid YAML"),
        ("{a: " * 5000, "nested too deep|not valid YAML"),
        ("name: \x07", "not valid YAML"),
        ("name: 2024-99-99", "cannot be read"),
        ("name: " + "9" * 6000, "cannot be read"),
        ("? [a, b]\n: 1", "name|key|YAML|unknown"),
        ("1: 2", "unknown|required|valid"),
        ("name: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("x" * (LARGEST + 1), "larger than"),
        ("", "keys and values"),
        ("- a", "keys and values"),
    ],
)
def test_a_hostile_policy_file_is_one_clear_error(text: str, complaint: str) -> None:
    with pytest.raises(FileError, match=complaint) as caught:
        parse_policy(text, "policy.yaml")
    assert len(str(caught.value)) < 3000


def test_a_few_lines_that_would_make_gigabytes_cost_next_to_nothing() -> None:
    tracemalloc.start()
    with pytest.raises(FileError, match="aliases"):
        parse_policy(BOMB, "policy.yaml")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("preset", ["guard", "lecture"])
def test_any_damage_to_a_policy_is_a_policy_or_one_clear_error(preset: str) -> None:
    text, rng = find(preset)[1], random.Random(3)
    lines = text.splitlines()
    for _ in range(30):
        damaged = [*lines]
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            match rng.randrange(4):
                case 0:
                    del damaged[at]
                case 1:
                    damaged[at] = damaged[rng.randrange(len(damaged))]
                case 2:
                    damaged[at] = mutated(damaged[at].encode(), rng).decode(errors="replace")
                case 3:
                    damaged[at] = rng.choice(["  ", ""]) + damaged[at]
        with contextlib.suppress(FileError):
            parse_policy("\n".join(damaged), "policy.yaml")


def test_a_policy_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(FileError, match="not text in UTF-8"):
        find(str(tmp_path / "policy.yaml"))
