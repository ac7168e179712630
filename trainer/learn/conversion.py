"""The state of a learner in one process as shards on disk, and back: a run may begin in one process and go on in many.

    {"model": name -> tensor, "optimizer": torch's state dict}   <->   a directory with the tensors by name, for any number of ranks

Names are those of the sharded learner (`ShardedLearner`): `model.<name>` and `optimizer.<name>.<key>`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trainer.checkpoint.store import CheckpointError
from trainer.learn.sharded import in_one_sentence, require_same
from trainer.model import Model

KEYS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def shard(state: Mapping[str, Any], directory: Path) -> None:
    """Write the state of one process into an empty directory, as ranks read it.

    Raises:
        CheckpointError: it is not the state of a model under AdamW, or the disk refused it.
    """
    named = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    moments = state["optimizer"]["state"]
    for index, (name, tensor) in enumerate(_parameters(state["model"])):
        own = moments.get(index) or _at_rest(tensor)  # before its first step the optimizer has nothing
        if own["exp_avg"].shape != tensor.shape:
            raise CheckpointError(f"the optimizer's state of {name} has shape {list(own['exp_avg'].shape)}")
        named |= {f"optimizer.{name}.{key}": own[key] for key in KEYS}
    if moments and len(moments) != index + 1:
        raise CheckpointError(f"the optimizer knows {len(moments)} parameters, the model has {index + 1}")
    with in_one_sentence(), _alone():
        save(named, checkpoint_id=directory, no_dist=True)


def whole(directory: Path, model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state that ranks wrote, as `PlainLearner` takes it, without the base learning rate.

    Raises:
        CheckpointError: it is not there, not whole, or not that of this model.
    """
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in model.state_dict().items()}
    moments = {name: _at_rest(tensor) for name, tensor in model.named_parameters()}
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    named |= {f"optimizer.{name}.{key}": own[key] for name, own in moments.items() for key in KEYS}
    with in_one_sentence(), _alone():
        require_same(FileSystemReader(directory).read_metadata().state_dict_metadata, named)
        load(named, checkpoint_id=directory, no_dist=True)
    groups = optimizer.state_dict()["param_groups"]
    return {"model": weights, "optimizer": {"state": dict(enumerate(moments.values())), "param_groups": groups}}


@contextmanager
def _alone() -> Iterator[None]:
    """Without the warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _parameters(model: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """In the optimizer's order: a tied weight has two names and counts under the first."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.items())}  # type: ignore[call-overload]
    return [(name, tensor) for name, tensor in model.items() if first[tensor.data_ptr()] == name]


def _at_rest(parameter: Tensor) -> dict[str, Tensor]:
    zeros = torch.zeros_like(parameter, device="cpu")
    return {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
