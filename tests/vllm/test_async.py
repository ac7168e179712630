"""The engine in a process of its own: the same completions, weights through our own backend, and an end to every wait."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vllm.conftest import SLOTS
from tests.vllm.test_generator import CLOSE, LONG, difference, drain, request, with_weights
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_async import AsyncEngine, Deadlines
from trainer.rollout.vllm_async_generator import AsyncVllmGenerator
from trainer.rollout.vllm_common import EngineError
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.sync.files import write
from trainer.types import Completion, Group, Version


@pytest.fixture(scope="module")
def shared(directory: Path, tokenizer: Any) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(directory, SLOTS, 512, tokenizer.eos_token_id)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: AsyncEngine, model: Any, numbers: Iterator[int]) -> Iterator[AsyncEngine]:
    shared.load(model.state_dict(), Version(0, next(numbers) * 100))
    yield shared
    for key in list(shared._flights):
        shared.drop(key)


@pytest.fixture
def generator(engine: AsyncEngine, interruption: Interruption) -> AsyncVllmGenerator:
    return AsyncVllmGenerator(engine, SLOTS, interruption)


def until_every_request_has(engine: AsyncEngine, tokens: int, generator: VllmGenerator) -> None:
    for _ in range(500):
        generator.poll()
        so_far = engine._await("count", engine._tokens(), 10.0)
        if all(n is None or n >= tokens for n in so_far):
            return
    raise AssertionError("it never got so far")


def weights_file(path: Path, weights: Mapping[str, Tensor]) -> tuple[Path, str]:
    return path, write(path, weights, weights.items())


def completions(groups: list[Group]) -> list[tuple[Any, ...]]:
    return [(c.tokens, c.loss_mask, c.finish, c.interrupted) for group in groups for c in group.completions]


def test_it_decodes_in_another_process(engine: AsyncEngine) -> None:
    (core,) = engine.processes
    assert core != os.getpid()
    os.kill(core, 0)


def test_completions_are_those_of_the_engine_in_this_process(
    generator: AsyncVllmGenerator, model: Any, tokenizer: Any, interruption: Interruption, shared_engine: Any
) -> None:
    shared_engine.load(model.state_dict(), generator._engine.version)
    inner = VllmGenerator(shared_engine, SLOTS, interruption)
    for index in range(12):
        wanted = request(tokenizer, index, limit=24, budget=16 if index % 2 else 0, heat=0.7 + 0.1 * (index % 4))
        generator.submit(wanted)
        inner.submit(wanted)
    theirs, ours = drain(generator), drain(inner)
    assert completions(theirs) == completions(ours)
    assert any(c.interrupted for group in theirs for c in group.completions)
    for group in theirs:  # forced tokens are masked there
        assert difference(model, group).abs().max() < CLOSE


def test_an_update_in_flight_gives_two_spans_and_finite_ratios(
    engine: AsyncEngine, generator: AsyncVllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    old, new = engine.version, Version(1, engine.version.n + 1)
    generator.submit(request(tokenizer, 0, n=SLOTS, limit=200))
    until_every_request_has(engine, 5, generator)
    generator.load(other_weights, new)
    (group,) = drain(generator)
    through = [completion for completion in group.completions if len(completion.spans) == 2]
    assert through
    for completion in through:
        before, after = completion.spans
        assert (before.version, after.version) == (old, new)
        assert before.tokens + after.tokens == len(completion.tokens)
        assert before.tokens >= 5
        n = before.tokens
        prefix = Completion(completion.tokens[:n], completion.logprobs[:n], (True,) * n, (), "length", False, 0.0)
        assert difference(model, Group(group.request, (prefix,))).abs().max() < CLOSE
    ratios = (-difference(with_weights(model, other_weights, tokenizer), group)).exp()
    assert ratios.isfinite().all()
    assert (ratios - 1).abs().max() > 0.1  # the two policies are not the same
    assert all(n.tokens for c in group.completions for n in c.spans)


def test_a_cached_prompt_does_not_outlive_its_weights(
    generator: AsyncVllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    generator.submit(request(tokenizer, 0, text=LONG))
    (before,) = drain(generator)
    generator.load(other_weights, Version(0, before.oldest.n + 1))
    generator.submit(request(tokenizer, 1, text=LONG))
    (after,) = drain(generator)
    assert difference(model, before).abs().max() < CLOSE
    assert after.oldest == Version(0, before.oldest.n + 1)
    assert difference(with_weights(model, other_weights, tokenizer), after).abs().max() < CLOSE


def test_a_prompt_that_waits_while_the_weights_change_is_read_by_the_new_ones(
    engine: AsyncEngine, generator: AsyncVllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    new = Version(2, engine.version.n + 1)
    generator.submit(request(tokenizer, 0, n=1, limit=8, text=LONG))  # the old weights' KV of this prompt is cached
    drain(generator)
    engine._pause()
    generator.submit(request(tokenizer, 1, n=SLOTS, limit=8, text=LONG))
    generator._admit()  # asked for under the old weights, and nothing more
    generator.load(other_weights, new)
    (group,) = drain(generator)
    assert group.oldest == new
    assert difference(with_weights(model, other_weights, tokenizer), group).abs().max() < CLOSE


def test_weights_of_a_file_are_taken_as_they_are(
    engine: AsyncEngine,
    generator: AsyncVllmGenerator,
    model: Any,
    other_weights: Mapping[str, Tensor],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    path, digest = weights_file(tmp_path / "new", other_weights)
    generator.load_file(path, digest, Version(0, engine.version.n + 1))
    path.unlink()
    assert engine.fingerprint() == digest
    generator.submit(request(tokenizer, 0))
    (group,) = drain(generator)
    assert difference(with_weights(model, other_weights, tokenizer), group).abs().max() < CLOSE


def test_after_a_rollback_the_fingerprint_is_that_of_the_old_weights(
    engine: AsyncEngine, model: Any, other_weights: Mapping[str, Tensor]
) -> None:
    before = engine.fingerprint()
    engine.load(other_weights, Version(0, engine.version.n + 1))
    assert engine.fingerprint() != before
    engine.load(model.state_dict(), Version(1, engine.version.n + 1))
    assert engine.fingerprint() == before


def corrupted(path: Path, digest: str) -> tuple[Path, str]:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path, digest


def lacking(path: Path, digest: str) -> tuple[Path, str]:
    from trainer.sync.files import read

    tensors = dict(read(path, digest))
    del tensors["model.norm.weight"]
    return weights_file(path.with_name("lacking"), tensors)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (corrupted, "digest"),
        (lacking, r"model\.norm\.weight"),
        (lambda path, digest: (path.with_name("absent"), digest), "cannot be read"),
    ],
)
def test_a_file_that_is_not_the_one_meant_is_refused_and_nothing_is_loaded(
    engine: AsyncEngine,
    generator: AsyncVllmGenerator,
    model: Any,
    other_weights: Mapping[str, Tensor],
    tokenizer: Any,
    tmp_path: Path,
    damage: Callable[[Path, str], tuple[Path, str]],
    reason: str,
) -> None:
    version, before = engine.version, engine.fingerprint()
    generator.submit(request(tokenizer, 0, n=4, limit=60))
    until_every_request_has(engine, 3, generator)
    with pytest.raises(ValueError, match=reason):
        generator.load_file(*damage(*weights_file(tmp_path / "new", other_weights)), Version(0, version.n + 1))
    assert (engine.version, engine.fingerprint()) == (version, before)
    (group,) = drain(generator)  # what was under way goes on under the old weights
    assert {span.version for completion in group.completions for span in completion.spans} == {version}
    assert difference(model, group).abs().max() < CLOSE


def test_weights_that_lack_a_tensor_are_refused(engine: AsyncEngine, other_weights: Mapping[str, Tensor]) -> None:
    version = engine.version
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        engine.load({n: w for n, w in other_weights.items() if n != "model.norm.weight"}, Version(0, version.n + 1))
    assert engine.version == version


def test_abort_forgets_everything_and_counts_what_it_threw_away(
    engine: AsyncEngine, generator: AsyncVllmGenerator, tokenizer: Any
) -> None:
    for index in range(8):
        generator.submit(request(tokenizer, index, limit=400, heat=0.01))
    until_every_request_has(engine, 3, generator)
    assert generator.inflight == 15
    assert generator.abort() >= 45
    assert (generator.inflight, generator.room, generator.poll()) == (0, SLOTS, [])
    generator.submit(request(tokenizer, 0))
    assert [group.request.id for group in drain(generator)] == [0]


def test_two_generators_share_one_engine(engine: AsyncEngine, tokenizer: Any, interruption: Interruption) -> None:
    rollout, judge = VllmGenerator(engine, 8, interruption), VllmGenerator(engine, 8, interruption)
    rollout.submit(request(tokenizer, 0, n=8, limit=300, heat=0.01))
    until_every_request_has(engine, 1, rollout)
    judge.submit(request(tokenizer, 1, n=2, limit=4))
    finished: list[Group] = []
    for _ in range(500):
        finished += judge.poll()
        if finished:
            break
    assert [group.request.id for group in finished] == [1]
    assert rollout.abort() > 0
    assert judge.abort() == 0


def test_progress_grows_while_tokens_come_though_nothing_ends(
    engine: AsyncEngine, generator: AsyncVllmGenerator, tokenizer: Any
) -> None:
    generator.submit(request(tokenizer, 0, n=1, limit=3500, heat=0.01))
    before, deadline = generator.progress, time.monotonic() + 20
    while generator.progress <= before + 1 and time.monotonic() < deadline:
        assert generator.poll() == []
    assert generator.progress > before + 1


@pytest.mark.parametrize(
    ("blow", "reason"), [(signal.SIGKILL, "ended with code -9"), (signal.SIGSTOP, "no token came in 3 s")]
)
def test_an_engine_core_that_is_gone_or_hangs_is_an_error_in_time(
    directory: Path, tokenizer: Any, interruption: Interruption, blow: signal.Signals, reason: str
) -> None:
    engine = AsyncEngine(
        directory, SLOTS, 512, tokenizer.eos_token_id, deadlines=Deadlines(call=5.0, load=5.0, stall=60.0)
    )
    try:
        generator = VllmGenerator(engine, SLOTS, interruption)
        generator.submit(request(tokenizer, 0, limit=3500, heat=0.01))
        until_every_request_has(engine, 1, generator)  # the first step takes longer than the deadline below
        engine._watch.patience = 3.0
        (core,) = engine.processes
        os.kill(core, blow)
        with pytest.raises(EngineError, match=reason):
            poll_for(generator, 30.0)
        with pytest.raises(EngineError, match="failed before"):
            generator.poll()
        with pytest.raises(EngineError, match="failed before"):
            generator.load({name: torch.zeros(1) for name in engine._layout_names}, Version(0, 1))
        assert ended(core)
    finally:
        engine.close()


def poll_for(generator: VllmGenerator, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        generator.poll()


def ended(process: int, seconds: float = 15.0) -> bool:
    """Whether a process is gone, or a zombie, within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


OWNER = """
import sys, time
from pathlib import Path
from trainer.rollout.vllm_async import AsyncEngine

if __name__ == "__main__":
    print(*AsyncEngine(Path(sys.argv[1]), 4, 64, 1).processes, flush=True)
    time.sleep(600)
"""


def test_no_process_of_vllm_outlives_a_killed_owner(directory: Path, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, script, directory],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert owner.stdout is not None
    line = ""
    while not line.strip().isdigit():  # vLLM prints, too
        line = owner.stdout.readline()
        assert line, "the owner ended before it had an engine"
    owner.kill()
    owner.wait()
    assert ended(int(line))
