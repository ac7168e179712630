"""The learner's end of vLLM's weight transfer against vLLM's own receiving end, with TCP in place of NCCL."""

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.vllm.conftest import SLOTS
from tests.vllm.test_async import until_every_request_has
from tests.vllm.test_generator import CLOSE, difference, drain, request, with_weights
from trainer.cluster import broadcast
from trainer.cluster.broadcast import BroadcastSync
from trainer.cluster.decoding import Decoder
from trainer.cluster.fleet import Fleet
from trainer.cluster.pool import Pool
from trainer.cluster.settings import ClusterSpec
from trainer.cluster.sync import FileSync, Outbox
from trainer.learn.sharded import ShardedLearner, join
from trainer.model import make_tiny
from trainer.rollout import vllm_async
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_async import AsyncEngine
from trainer.rollout.vllm_async_generator import AsyncVllmGenerator
from trainer.settings import OptimizerSpec, TinyModel
from trainer.sync.files import write
from trainer.sync.vllm_transfer import Sender, TransferError, source
from trainer.types import Group, Version


class Receiver:
    """A second generator, of two workers, one after the other: what it is sent."""

    def __init__(self) -> None:
        self.got: list[dict[str, Tensor]] = [{}, {}]
        self._communicators: list[Any] = []

    def join(self, info: Mapping[str, Any]) -> None:
        tcp = importlib.import_module("tests.vllm.fake_nccl").TcpCommunicator
        with ThreadPoolExecutor(2) as both:
            places = [(info["master_address"], info["master_port"], info["rank_offset"] + w) for w in (0, 1)]
            self._communicators = list(both.map(lambda place: tcp(*place, info["world_size"]), places))

    def receive(self, info: Mapping[str, Any]) -> None:
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            for communicator, got in zip(self._communicators, self.got, strict=True):
                got[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                communicator.broadcast(got[name], 0)


class Both:
    """Implements `Generators`: an engine, and a receiver that only listens."""

    workers: Sequence[int] = (1, 2)

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine, self.receiver = engine, Receiver()

    def join(self, infos: Sequence[Mapping[str, Any]]) -> None:
        self._at_once(lambda: self._engine.join("both", infos[0]), lambda: self.receiver.join(infos[1]))

    def begin_update(self) -> None:
        self._engine.begin_update()

    def receive(self, info: Mapping[str, Any]) -> None:
        self._at_once(lambda: self._engine.receive(info), lambda: self.receiver.receive(info))

    def end_update(self, version: Version) -> None:
        self._engine.end_update(version)

    @staticmethod
    def _at_once(*calls: Any) -> None:
        with ThreadPoolExecutor(len(calls)) as pool:
            for answer in [pool.submit(call) for call in calls]:
                answer.result()


@pytest.fixture
def learner(other_weights: Mapping[str, Tensor], tokenizer: Any) -> Iterator[ShardedLearner]:
    """One rank with FSDP2 shards; it has the other weights. vLLM's engine in this process may have made a group already."""
    alone = not dist.is_initialized()
    if alone:
        join(dist.HashStore(), 0, 1, torch.device("cpu"), timedelta(seconds=60))
    model = make_tiny(TinyModel(), tokenizer, seed=3)
    model.load_state_dict(other_weights)
    learner = ShardedLearner(model, OptimizerSpec())
    yield learner
    if alone:
        learner.close()


def test_the_source_declares_what_it_yields(learner: ShardedLearner, other_weights: Mapping[str, Tensor]) -> None:
    stream = source(learner)
    declared = [(meta.name, meta.dtype, meta.shape) for meta in stream.metadata()]
    for _ in range(2):  # each round anew
        yielded = list(stream)
        assert [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in yielded] == declared
        assert all(torch.equal(tensor, other_weights[name]) for name, tensor in yielded)


def test_weights_reach_every_worker_in_flight_by_vllms_own_transfer(
    directory: Any,
    model: Any,
    other_weights: Mapping[str, Tensor],
    learner: ShardedLearner,
    tokenizer: Any,
    interruption: Interruption,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(vllm_async, "EXTENSION", "tests.vllm.fake_nccl.Extension")
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.current_stream)  # put back after the fake
    monkeypatch.setattr(torch.accelerator, "current_device_index", torch.accelerator.current_device_index)
    fake = importlib.import_module("tests.vllm.fake_nccl")
    fake.install()
    engine = AsyncEngine(directory, SLOTS, 512, tokenizer.eos_token_id, transfer="nccl")
    try:
        generator = AsyncVllmGenerator(engine, SLOTS, interruption)
        both = Both(engine)
        sender = Sender(learner, rank=0, ranks=1, device=torch.device("cpu"), packed=False, deadline=60.0)
        sender.open(both, "127.0.0.1", _free_port())
        before = engine.fingerprint()
        generator.submit(request(tokenizer, 0, n=SLOTS, limit=200))
        until_every_request_has(engine, 5, generator)
        sender.send(Version(0, 1))
        (flying,) = drain(generator)
        assert {len(completion.spans) for completion in flying.completions} >= {2}
        assert engine.fingerprint() != before
        generator.submit(request(tokenizer, 1))
        (group,) = drain(generator)
        assert group.oldest == Version(0, 1)
        assert difference(with_weights(model, other_weights, tokenizer), group).abs().max() < CLOSE
        for got in both.receiver.got:
            assert got.keys() == other_weights.keys()
            assert all(torch.equal(got[name], tensor) for name, tensor in other_weights.items())
        sender.close()

        # Now as on a cluster: the pool invites, the learner sends, and who comes up in between takes a file.
        pool, learners = the_pool(generator), Ranks(learner, other_weights)
        files = FileSync(learners.export, pool, Outbox(tmp_path, "run"))
        sync = BroadcastSync(files, pool, learners.apply, workers=1, deadline=60.0, packed=False)
        sync.publish(Version(0, 2))
        while not pool.sampling:
            pool.turn(0.1)
        assert (engine.version, learners.exported, learners.sent) == (Version(0, 2), 1, 0)
        pool.rollouts.submit(request(tokenizer, 2))
        first = collected(pool)
        assert first.oldest == Version(0, 2)
        assert difference(with_weights(model, other_weights, tokenizer), first).abs().max() < CLOSE
        for n, weights in ((3, model.state_dict()), (4, other_weights)):
            learners.become(weights)
            pool.rollouts.submit(request(tokenizer, n, limit=400, heat=0.01))
            sync.publish(Version(0, n))
            assert collected(pool).oldest.n >= n - 1
            pool.rollouts.submit(request(tokenizer, 10 + n))
            last = collected(pool)
            assert last.oldest == Version(0, n)
            assert difference(with_weights(model, weights, tokenizer), last).abs().max() < CLOSE
        assert (learners.exported, learners.sent) == (1, 2)
        pool.close()
    finally:
        engine.close()


class Ranks:
    """One rank as `LearnerGroup` would have it."""

    def __init__(self, learner: ShardedLearner, weights: Mapping[str, Tensor]) -> None:
        self.learner, self.weights = learner, weights
        self.exported = self.sent = 0

    def become(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.learner.model.state_dict().items():
                tensor.to_local().copy_(weights[name])  # one rank has it whole

    def export(self, path: Path) -> str:
        self.exported += 1
        return write(path, self.learner.layout(), self.learner.weights())

    def apply(self, function: Callable[..., Any], *args: Any, doing: str) -> list[Any]:
        self.sent += function is broadcast.send
        return [function(self.learner, *args)]


class LocalEngine:
    """An engine of the pool with its decoder in this process."""

    needs = "nothing"

    def __init__(self, name: str, generator: AsyncVllmGenerator, judge: AsyncVllmGenerator) -> None:
        self.name = name
        self._decoder = Decoder({"rollout": generator, "evaluation": judge}, 1)
        self._control, self._collect = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.ready: Future[Any] = Future()
        self.ready.set_result({})

    def placed(self) -> bool:
        return True

    def submit(self, *args: Any) -> "Future[Any]":
        return self._control.submit(self._decoder.submit, *args)

    def load(self, *args: Any) -> "Future[Any]":
        return self._control.submit(self._decoder.load, *args)

    def abort(self, *args: Any) -> "Future[Any]":
        return self._control.submit(self._decoder.abort, *args)

    def collect(self, wait: float) -> "Future[Any]":
        return self._collect.submit(self._decoder.collect, wait)

    def kill(self) -> None:
        self._decoder.close()


def the_pool(generator: AsyncVllmGenerator) -> Pool:
    judge = AsyncVllmGenerator(generator._own, 4, generator._interruption)
    spec = ClusterSpec()
    fleet = Fleet(lambda name: LocalEngine(name, generator, judge), spec, lambda: 1)
    return Pool(fleet, spec, {"rollout": SLOTS, "evaluation": 4}, {"rollout": 3, "evaluation": 1})


def collected(pool: Pool) -> Group:
    for _ in range(3000):
        for group in pool.rollouts.poll():
            return group
    raise AssertionError("no group came")


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_generator_that_does_not_come_is_an_error_in_time(
    learner: ShardedLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.current_stream)
    monkeypatch.setattr(torch.accelerator, "current_device_index", torch.accelerator.current_device_index)
    importlib.import_module("tests.vllm.fake_nccl").install()
    came = threading.Event()

    class Absent:
        workers: Sequence[int] = ()

        def join(self, infos: Sequence[Mapping[str, Any]]) -> None:
            came.wait(30)

    sender = Sender(learner, rank=0, ranks=1, device=torch.device("cpu"), packed=False, deadline=1.0)
    with pytest.raises(TransferError, match=r"could not meet the generators within 1 s"):
        sender.open(Absent(), "127.0.0.1", _free_port())  # type: ignore[arg-type]
    came.set()
    with pytest.raises(TransferError, match="failed before"):
        sender.open(Absent(), "127.0.0.1", _free_port())  # type: ignore[arg-type]


def test_ipc_is_for_a_learner_of_one_rank(learner: ShardedLearner) -> None:
    with pytest.raises(ValueError, match="use nccl"):
        Sender(learner, rank=0, ranks=2, device=torch.device("cpu"), kind="ipc")
