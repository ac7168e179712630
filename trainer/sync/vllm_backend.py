"""Weights for vLLM out of a file: a backend of its weight-transfer API, and what runs of us inside vLLM's worker processes.

    stage(path, digest)         map the file, prove it; nothing is touched yet, so a refusal leaves everything as it was
    start_weight_update()
    update_weights({digest})    load what was staged
    finish_weight_update()
    loaded_digest()             of the file whose tensors the model took

vLLM imports this file in each worker because `EXTENSION` is its extension class; nobody else does. Its own backends (nccl,
ipc, ...) need CUDA, and this one works on any device: each worker takes its part of the tensors out of the same mapped pages.
On CPUs the digest is the only proof there is: vLLM packs the linear layers there, and its own checksums do not see them.
"""

import contextlib
import os
import select
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from trainer.rollout.vllm_common import BACKEND, OWNER, complete, weight_names
from trainer.sync.files import WeightsFileError, read


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """There is nothing to agree on before the first update."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Which of the staged files to load."""

    digest: str


class FileTransfer(WeightTransferEngine):  # type: ignore[misc]
    """The receiving end in one worker."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate
    supports_draft_weight_update = False

    loaded = ""
    """Digest of the file whose tensors the model has; empty before the first update and in the middle of one."""
    _staged: tuple[str, Mapping[str, Tensor]] | None = None

    def stage(self, path: Path, digest: str) -> str:
        """Map a file and prove it; why it is refused, or nothing."""
        self._staged = None
        try:
            weights = read(path, digest)
            complete(weight_names(Path(self.model_config.model)), weights)
        except (WeightsFileError, ValueError) as error:
            return str(error)
        self._staged = digest, weights
        return ""

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Nothing to do: the model is taken apart only when its new weights are at hand."""

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Load the staged file into the model."""
        if self._staged is None or self._staged[0] != update_info.digest:
            raise RuntimeError(f"no weights with digest {update_info.digest[:12]} are staged")
        digest, weights = self._staged
        self._staged, self.loaded = None, ""
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(weights.items()))
        finalize_layerwise_reload(self.model, self.model_config)
        self.loaded = digest

    def finish_weight_update(self) -> None:
        """Nothing to do."""

    def shutdown(self) -> None:
        """Let go of what is staged."""
        self._staged = None


class Extension:
    """Methods that vLLM adds to its worker, for collective_rpc."""

    vllm_config: Any
    device: Any
    model_runner: Any
    weight_transfer_engine: Any
    _beside: "FileTransfer | None" = None

    def stage_weights(self, path: str, digest: str) -> str:
        """Why this worker refuses the file, or nothing."""
        return self._file_transfer().stage(Path(path), digest)

    def loaded_digest(self) -> str:
        """Digest of the file that this worker's model took."""
        return self._file_transfer().loaded

    def load_staged(self, digest: str) -> None:
        """Load what was staged where vLLM's backend is another one: an engine that comes up between two broadcasts."""
        with set_current_vllm_config(self.vllm_config):
            self._file_transfer().receive_weights(FileUpdate(digest))

    def _file_transfer(self) -> FileTransfer:
        if isinstance(self.weight_transfer_engine, FileTransfer):
            return self.weight_transfer_engine
        if self._beside is None:
            config = self.vllm_config
            model = self.model_runner.get_model()
            self._beside = FileTransfer(config.weight_transfer_config, config, self.device, model)
        return self._beside


def _end_with(owner: int) -> None:
    """End this process and the engine core when the process that owns the engine is gone.

    vLLM stops its processes when it is asked to; an owner that was killed asks nobody, and they would keep their device.
    """
    try:
        ended = os.pidfd_open(owner)
    except ProcessLookupError:
        os._exit(1)
    except OSError:
        return  # a kernel before 5.3
    core = os.getppid()  # the owner itself where the model is in the process of the core
    select.select([ended], [], [])
    if core not in (owner, 1):
        with contextlib.suppress(OSError):
            os.kill(core, 9)
    os._exit(1)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
if os.environ.get(OWNER, str(os.getpid())) != str(os.getpid()):
    threading.Thread(target=_end_with, args=(int(os.environ[OWNER]),), daemon=True, name="owner-watch").start()
