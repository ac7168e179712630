"""Weights from the learner straight into vLLM's workers, by vLLM's own transfer API: over NCCL, or as CUDA handles.

    every rank of the learner          rank 0                      every generator (trainer.rollout.vllm_async)
    Sender.open                        join(info for each) ──────> join          all meet: rank 0 and every worker
    Sender.send                        begin_update ─────────────> begin_update  pause(keep), start
      gathers one parameter after      receive ──────────────────> receive       while rank 0 broadcasts
      another, all ranks alike         end_update(version) ──────> end_update    finish, resume

There is never more than one whole parameter, and a buffer, beside the shards. What meets is fixed: when a generator comes or
goes, `open` is called again with those that are there.

**Not run on GPUs.** Both ends are vLLM's own classes; the tests run them against each other on a CPU with a communicator of
ours in place of NCCL, and unpacked. Packed buffers, CUDA streams and `ipc` are written by vLLM's source and not tried.
"""

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from trainer.rollout.vllm_common import import_vllm
from trainer.types import Version


class TransferError(RuntimeError):
    """The transfer failed or did not end. The ranks no longer agree on where they are: start them again. One sentence."""


class Weights(Protocol):
    """A learner's weights as generators hold them. `trainer.learn.sharded.ShardedLearner` is one."""

    def layout(self) -> Mapping[str, Tensor]:
        """Names, shapes and formats, as meta tensors; the same on every rank."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight in the order of `layout`, whole on rank 0. Collective."""
        ...


class Generators(Protocol):
    """All generators, as rank 0 sees them. Every call ends when all have answered, and raises if one failed or was late.

    Where somebody else tells the generators what to do at the same time, as the pool of a cluster does: `Elsewhere`.
    """

    @property
    def workers(self) -> Sequence[int]:
        """Workers of each generator that receive weights: its tensor_parallel_size."""
        ...

    def join(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """One info for each generator."""
        ...

    def begin_update(self) -> None:
        """Stop between two tokens."""
        ...

    def receive(self, info: Mapping[str, Any]) -> None:
        """Take what is broadcast now."""
        ...

    def end_update(self, version: Version) -> None:
        """Go on under the new weights."""
        ...


class Elsewhere:
    """Implements `Generators` where somebody else invites them: there is nothing to say from here."""

    def __init__(self, workers: Sequence[int]) -> None:
        self.workers = workers

    def join(self, infos: Sequence[Mapping[str, Any]]) -> None: ...

    def begin_update(self) -> None: ...

    def receive(self, info: Mapping[str, Any]) -> None: ...

    def end_update(self, version: Version) -> None: ...


def invitations(address: str, port: int, workers: Mapping[str, int], packed: bool) -> dict[str, dict[str, Any]]:
    """What each generator joins with: rank 0 is the sender, then come the workers of one after the other."""
    infos, rank = {}, 1
    for name, count in workers.items():
        infos[name] = {
            "master_address": address,
            "master_port": port,
            "rank_offset": rank,
            "world_size": 1 + sum(workers.values()),
            "packed": packed,
        }
        rank += count
    return infos


def announcement(layout: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `receive` is told of the weights that `Sender` sends."""
    return {
        "names": list(layout),
        "dtype_names": [str(each.dtype).removeprefix("torch.") for each in layout.values()],
        "shapes": [list(each.shape) for each in layout.values()],
    }


class Sender:
    """One rank's end of the transfer. Every rank of the learner makes one and calls all of its methods.

    Args:
        rank: of this process in the learner; 0 sends.
        device: where this rank's shards are.
        kind: nccl, or ipc for a learner of one rank on the GPU that a generator has, too.
        packed: many small tensors travel in one buffer.
        deadline: seconds after which `open` or `send` has failed.

    Raises:
        ValueError: ipc with more than one rank.
    """

    def __init__(
        self,
        weights: Weights,
        rank: int,
        ranks: int,
        device: torch.device,
        kind: Literal["nccl", "ipc"] = "nccl",
        packed: bool = True,
        deadline: float = 300.0,
    ) -> None:
        if kind == "ipc" and ranks > 1:
            raise ValueError(f"ipc hands over the tensors of one process, and the learner has {ranks}; use nccl")
        self._weights, self._rank, self._device = weights, rank, device
        self._kind, self._packed, self._deadline = kind, packed, deadline
        self._client = _Client()
        self._engine: Any = None
        self._failure: BaseException | None = None

    def open(self, generators: Generators, address: str, port: int) -> None:
        """Meet all workers of the generators at rank 0's `address`, where `port` is free.

        Raises:
            TransferError: not everybody came in time.
        """
        self.close()
        self._client.generators = generators
        self._engine = self._in_time("meet the generators", lambda: self._meet(sum(generators.workers), address, port))

    def send(self, version: Version) -> None:
        """Returns when every generator samples under the current weights, as `version`.

        Raises:
            TransferError: one does not; nobody knows which.
        """
        self._client.version = version
        self._in_time(f"bring weights {version.branch}.{version.n} to the generators", self._engine.send_weights)

    def close(self) -> None:
        """Leave the group, if there is one."""
        if self._engine is not None and self._failure is None:
            self._engine.shutdown()
        self._engine = None

    def _meet(self, workers: int, address: str, port: int) -> Any:
        import_vllm("ERROR")
        factory = importlib.import_module("vllm.distributed.weight_transfer.factory").WeightTransferTrainerFactory
        if self._kind == "ipc":
            ipc = importlib.import_module("vllm.distributed.weight_transfer.ipc_engine")
            info = ipc.IPCTrainerInitInfo(packed=self._packed, rank=self._rank)
        else:
            nccl = importlib.import_module("vllm.distributed.weight_transfer.nccl_engine")
            info = nccl.NCCLTrainerInitInfo(
                master_address=address,
                master_port=port,
                world_size=1 + workers,
                packed=self._packed,
                rank=self._rank,
            )
        return factory.trainer_init(info, client=self._client, source=source(self._weights))

    def _in_time(self, action: str, call: Callable[[], Any]) -> Any:
        """Nothing interrupts a collective that hangs; so it runs in a thread that is left behind when it is late."""
        if self._failure is not None:
            raise TransferError("a transfer failed before; start the learner and the generators again")
        result: Future[Any] = Future()
        threading.Thread(target=self._run, args=(call, result), name="weight-transfer", daemon=True).start()
        try:
            return result.result(self._deadline)
        except FutureTimeout as error:
            self._failure = error
            raise TransferError(f"could not {action} within {self._deadline:g} s") from error
        except Exception as error:
            self._failure = error
            raise TransferError(f"could not {action}: {error}") from error

    def _run(self, call: Callable[[], Any], result: "Future[Any]") -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # each thread has a current device of its own
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)


def source(weights: Weights) -> Any:
    """A learner's weights as a `WeightSource` of vLLM's."""
    base = importlib.import_module("vllm.distributed.weight_transfer.base")

    class Source(base.WeightSource):  # type: ignore[misc, name-defined]
        def metadata(self) -> list[Any]:
            return [base.ParamMeta(name, each.dtype, tuple(each.shape)) for name, each in weights.layout().items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return weights.weights()

    return Source()


class _Client:
    """vLLM's `VLLMWeightSyncClient` over our generators, on rank 0.

    vLLM's own client gives every generator the same rank in the group; that is right for one, and two would collide.
    """

    generators: Generators
    version: Version

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos, rank = [], init_info.get("rank_offset", 0)
        for workers in self.generators.workers:
            infos.append({**init_info, "rank_offset": rank} if "rank_offset" in init_info else init_info)
            rank += workers
        self.generators.join(infos)

    def start_weight_update(self) -> None:
        self.generators.begin_update()

    def update_weights(self, update_info: Any) -> None:
        self.generators.receive(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.generators.end_update(self.version)
