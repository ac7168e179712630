"""The learner on many ranks: FSDP2, every rank with its slice of each weight, gradient and optimizer state.

    the whole batch, the same on every rank -> own sequences -> forward, backward -> gradients summed over ranks -> AdamW
                                                  |
             one layer at a time is gathered whole, used, and given up again; reductions in float32

The loss of a rank is its part of one sum whose weights are those of the whole batch, so the gradients of the ranks are
added, never averaged. Every rank makes as many passes: where it has no sequences left it computes one without loss, or the
collectives of the others would wait for it. What a step reports is measured over all ranks, and is the same on each.

    bfloat16   layers are gathered in bfloat16 and their gradients reduced in float32; embedding, final norm and head are
               gathered in float32, because a float32 head must not be a rounded one

All methods that touch tensors are collective: every rank calls them, with the same arguments, in the same order.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainer import decoder
from trainer.checkpoint.store import CheckpointError
from trainer.learn.batch import Batch
from trainer.learn.forward import Forward
from trainer.learn.learner import BaseLearner
from trainer.learn.peers import ProcessGroupPeers
from trainer.learn.recompute import recomputed
from trainer.model import Model
from trainer.settings import Loss, OptimizerSpec, Precision


def join(store: Any, rank: int, ranks: int, device: torch.device, timeout: timedelta) -> None:
    """Make this process a rank of the learner. `timeout` bounds every collective.

    GPUs talk over NCCL; what lies in host memory, checkpoints among it, goes over gloo in any case.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


class ShardedLearner(BaseLearner):
    """The step of `PlainLearner` on all ranks of the default process group; the same numbers up to the order of summation.

    The state has three places: in force (on the device), kept (copies in host memory, by name) and on disk. A change of
    what is in force has two phases: `stage` brings the new state into host memory and may fail, with nothing changed;
    `commit` copies it in.
    """

    def __init__(
        self,
        model: Model,
        spec: OptimizerSpec,
        loss: Loss | None = None,
        precision: Precision | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`model` may have any format and lie in host memory; only this rank's shards go to `device`."""
        if spec.compile:
            raise ValueError("optimizer.compile is not supported with shards; set it to false")
        self._host = init_device_mesh("cpu", (dist.get_world_size(),))
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._staged: dict[str, Tensor] | None = None
        super().__init__(model, spec, loss, precision, device, ProcessGroupPeers())
        self._begin_optimizer()

    def _prepare(self, model: Model, device: torch.device | str | None) -> tuple[Model, Callable[[Batch], Any]]:
        """Layers first, then the rest of the model as one unit. FSDP acts when a module is called: so the lean pass calls
        each layer, and the learner calls the model."""
        kind = torch.device(device or "cpu").type
        mesh = self._host if kind == "cpu" else init_device_mesh(kind, (dist.get_world_size(),))
        rounded = torch.bfloat16 if self._precision.dtype == "bfloat16" else None
        policy = MixedPrecisionPolicy(
            rounded, torch.float32, cast_forward_inputs=False
        )  # the residual stream stays float32
        forward = Forward(model, self._precision, run=_call)
        for layer in _layers(model):
            if decoder.supports(model):
                layer.forward = partial(decoder.block, layer)
            if self._spec.recompute:  # inside of what FSDP gathers: it is there again when the second pass runs
                layer.forward = recomputed(layer.forward)
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        model.forward = forward
        return model.float(), model  # after sharding: never two whole copies in host memory

    def _begin_optimizer(self) -> None:
        """The state that AdamW makes at its first step: there from the start, so that what is saved always has one shape."""
        for parameter in self.model.parameters():
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=self._device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _clip(self) -> float:
        norm: Any = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._spec.clip_norm)
        return float(norm.full_tensor())

    def _gradients(self) -> list[Tensor]:
        return [_local(gradient) for gradient in super()._gradients()]

    # Weights for the generators

    def layout(self) -> dict[str, Tensor]:
        """Names, shapes and formats of the weights as generators hold them; meta tensors. Not collective."""
        config, head = self._precision, self.model.get_output_embeddings()
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        exact = set()
        if config.generator_head == "float32" and not self.model.config.tie_word_embeddings:
            exact = {id(parameter) for parameter in head.parameters()}
        formats = {
            name: torch.float32 if id(parameter) in exact else dtype
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
        }
        return {
            name: torch.empty(tensor.shape, dtype=formats.get(name, tensor.dtype), device="meta")
            for name, tensor in self.model.state_dict().items()
        }

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight in the order of `layout`, whole on rank 0, without content on the others.

        One is gathered after the other; the caller lets go of each before it asks for the next, on all ranks alike.
        """
        layout = self.layout()
        for name, tensor in self.model.state_dict().items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.to(layout[name].dtype) if self._peers.rank == 0 else layout[name]

    # The whole state

    def keep(self, name: str) -> None:
        """Copy the state in force into host memory. Not collective."""
        self._kept[name] = self._copied(self._state())

    def release(self, name: str) -> None:
        """Forget a copy; one that is not there is forgotten already. Not collective."""
        self._kept.pop(name, None)

    @property
    def local_bytes(self) -> int:
        """What this rank's part of the state takes; so much host memory a copy needs. Not collective."""
        return sum(_local(tensor).nbytes for tensor in self._state().values())

    @property
    def kept(self) -> frozenset[str]:
        """Copies in host memory."""
        return frozenset(self._kept)

    def write(self, directory: Path, name: str | None = None) -> None:
        """Write the state in force, or a copy, into a directory that every rank sees; each rank its own files, flushed.

        Raises:
            CheckpointError: a rank could not; on every rank.
        """
        state = self._state() if name is None else self._kept[name]
        with in_one_sentence():
            save(dict(state), checkpoint_id=directory)

    def stage(self, source: Path | str) -> None:
        """Bring a directory (written by any number of ranks) or a copy to where `commit` takes it from.

        Raises:
            CheckpointError: it is not there, not whole, or not the state of this model.
        """
        if isinstance(source, str):
            if source not in self._kept:
                raise CheckpointError(f"rank {self._peers.rank} has no copy {source} in memory")
            self._staged = self._kept[source]
            return
        spare = self._copied(self._state())
        with in_one_sentence():
            require_same(FileSystemReader(source).read_metadata().state_dict_metadata, spare)
            load(spare, checkpoint_id=source)
        self._staged = spare

    def discard(self) -> None:
        """Forget what is staged."""
        self._staged = None

    def commit(self) -> None:
        """Put what is staged in force, bit for bit; needs neither disk nor network."""
        if self._staged is None:
            raise RuntimeError("commit: nothing is staged")
        with torch.no_grad():
            for name, tensor in self._state().items():
                _local(tensor).copy_(_local(self._staged[name]))
        self._optimizer.zero_grad(set_to_none=True)
        self._staged = None

    def close(self) -> None:
        """Leave the process group."""
        self._kept.clear()
        gc.collect()
        dist.destroy_process_group()

    def _state(self) -> dict[str, Tensor]:
        """Every tensor of model and optimizer, by name: shards, and counters that are the same on every rank."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self._optimizer.state[parameter].items():
                state[f"optimizer.{name}.{key}"] = tensor
        return state

    def _copied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """In host memory, still as shards."""
        return {name: self._on_host(tensor) for name, tensor in state.items()}

    def _on_host(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        local = tensor.to_local().detach().to("cpu", copy=True)
        placed = DTensor.from_local(
            local, self._host, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        return placed


def _call(layer: nn.Module, *args: Tensor) -> Any:
    """So that the hooks of the layer see the call."""
    return layer(*args)


def _layers(model: Model) -> list[nn.Module]:
    """The blocks that the model says must not be split."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """What DCP raises is no ordinary exception and holds the tracebacks of all ranks."""
    try:
        yield
    except CheckpointException as error:
        ranks = sorted(error.failures)
        cause = error.failures[ranks[0]][0]
        raise CheckpointError(f"rank {', '.join(map(str, ranks))}: {cause}") from cause
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(str(error)) from error


def require_same(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a checkpoint has not the tensors, by name and shape, that are expected of it."""
    for name, tensor in expected.items():
        size = getattr(found.get(name), "size", None)
        if size is None or tuple(size) != tuple(tensor.shape):
            there = "missing" if size is None else f"of shape {list(size)}"
            raise ValueError(f"tensor {name} is {there} in the checkpoint; the model has shape {list(tensor.shape)}")
