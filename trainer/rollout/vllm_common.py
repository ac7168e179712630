"""What is known of vLLM 0.32, whichever way its engine runs: how it is set up, what is asked of it, what it gives back.

    vllm_engine   the engine in this process          one step, one token
    vllm_async    the engine in a process of its own  goes on by itself; parts are fetched as they end
    vllm_generator   groups of completions over either of them; vllm_async_generator adds what only the second can

Every token is recorded with its log-probability after temperature and with the weights version that sampled it. The
prefix cache is salted with the version: a prompt never meets KV of other weights. A request without a token yet when the
weights change starts again, because its prompt may have been read by the old ones. So versions tell how stale a token is:
none was sampled, and none before it in its request was read, by weights older than the request's oldest version.
Nothing of vLLM is imported before an engine is made.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from trainer.types import Span, Version

SERIES = "0.32"
"""The releases this was written for; `make test-vllm` tests what it relies on."""
BLOCK = 128
"""Tokens in the largest KV block that vLLM takes by default; the last block of a request is only partly filled."""

BACKEND = "scalerl_file"
"""Name under which trainer.sync.vllm_backend registers with vLLM."""
EXTENSION = "trainer.sync.vllm_backend.Extension"
"""What vLLM mixes into its workers, and by that imports in their processes."""
OWNER = "SCALERL_VLLM_OWNER"
"""Environment variable with the process without which vLLM's processes end."""


class EngineError(RuntimeError):
    """vLLM is missing, or failed and cannot go on."""


@dataclass(frozen=True)
class Part:
    """What one request to the engine gave."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[Span, ...]
    stopped: bool
    """The model ended by itself; otherwise the limit did."""


@dataclass(frozen=True)
class Ask:
    """A request as it was made, so that it can be made again."""

    prompt: tuple[int, ...]
    limit: int
    temperature: float
    seed: int
    done: Callable[[Part], None]


class Engine(Protocol):
    """One model with its KV cache. Several generators may share it; they share the weights, too."""

    @property
    def context(self) -> int:
        """Positions of the model."""
        ...

    @property
    def version(self) -> Version:
        """The weights in force."""
        ...

    def add(
        self, prompt: tuple[int, ...], limit: int, temperature: float, seed: int, done: Callable[[Part], None]
    ) -> str:
        """Ask for up to `limit` tokens after `prompt`; `done` is called by the step that ends it. Returns its key."""
        ...

    def drop(self, key: str) -> int:
        """Forget a request; returns the tokens it had so far."""
        ...

    def step(self) -> None:
        """Make progress, and call `done` of every request that ended by it."""
        ...

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        """Decode under `weights` (Hugging Face names) from the next token on; they are copied.

        Raises:
            ValueError: a tensor of the model is missing; nothing was loaded.
            EngineError: vLLM failed.
        """
        ...


@dataclass(frozen=True)
class Setup:
    """What an engine is made from.

    Attributes:
        path: model directory; its weights are version (0, 0).
        slots: completions decoded at once, over all generators.
        length: tokens of prompt and completion that every slot has KV memory for. Longer ones work, but then the slots
            cannot all be in use: vLLM preempts.
        end: the token that ends a completion.
        dtype, head: number formats of the model and of its language-model head, as in the recipe's `precision`.
        tensor_parallel_size: GPUs that share the model, all in one machine.
    """

    path: Path
    slots: int
    length: int
    end: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    head: Literal["float32", "model"] = "float32"
    tensor_parallel_size: int = 1

    def arguments(self, on_cpu: bool) -> dict[str, Any]:
        """Arguments of EngineArgs and of AsyncEngineArgs alike.

        Raises:
            ValueError: the model is to be split on a machine without GPUs.
        """
        if on_cpu and self.tensor_parallel_size > 1:
            raise ValueError(
                f"rollout.tensor_parallel_size is {self.tensor_parallel_size}, and without GPUs a model is not split: it must be 1"
            )
        config = AutoConfig.from_pretrained(self.path)
        room = max(self.slots * (self.length + BLOCK), int(config.max_position_embeddings) + BLOCK)
        return {
            "model": str(self.path),
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # the model's own may name further end tokens
            "dtype": self.dtype,
            "hf_overrides": {"head_dtype": "float32"} if self.head == "float32" else {},
            "logprobs_mode": "processed_logprobs",
            "max_num_seqs": self.slots,
            "kv_cache_memory_bytes": _kv_bytes(config, room, self.dtype, self.tensor_parallel_size),
            "gpu_memory_utilization": 0.01,  # memory that must be free at the start, no more: KV memory is given above
            "enable_prefix_caching": True,
            "enable_chunked_prefill": not on_cpu,  # a CPU's random state cannot be rewound after a part of a prompt
            "async_scheduling": False,  # a step that runs ahead would be stamped with weights it did not see
            "enforce_eager": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "tensor_parallel_size": self.tensor_parallel_size,
            # Said outright, because vLLM would take Ray for more than one GPU inside a placement group of ours.
            "distributed_executor_backend": "uni" if self.tensor_parallel_size == 1 else "mp",
        }

    def context(self) -> int:
        """Positions of the model."""
        return int(AutoConfig.from_pretrained(self.path).max_position_embeddings)

    def weight_names(self) -> frozenset[str]:
        """Names of all tensors in the model directory."""
        return weight_names(self.path)


def import_vllm(logging: Literal["CRITICAL", "ERROR"]) -> Any:
    """The module vllm, quiet and off the network. What it logs below `logging` is not seen in any of its processes.

    Raises:
        EngineError: it is not installed, or of another series.
    """
    # With one device the model is in the process of the engine core: one process less, and half the time to start.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", logging)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vllm = importlib.import_module("vllm")
    except ImportError as error:
        raise EngineError(
            f"sampling with vLLM needs vllm {SERIES}, and {error}. Without a GPU, tools/setup-vllm.sh makes an "
            f"environment that has it; with one, install vllm=={SERIES}.* beside the trainer"
        ) from error
    if not vllm.__version__.startswith(f"{SERIES}."):
        raise EngineError(f"sampling with vLLM needs vllm {SERIES}, and this is {vllm.__version__}")
    return vllm


def on_cpu() -> bool:
    """Whether vLLM decodes on CPUs here."""
    return bool(importlib.import_module("vllm.platforms").current_platform.is_cpu())


def prompt(ask: Ask, version: Version) -> dict[str, Any]:
    """A prompt as vLLM takes it. Cached KV of it is used again only under the same weights."""
    return {"type": "token", "prompt_token_ids": list(ask.prompt), "cache_salt": label(version)}


def sampling(vllm: Any, ask: Ask, end: int) -> Any:
    """How the tokens of a request are to be drawn and told."""
    return vllm.SamplingParams(
        temperature=ask.temperature,
        seed=ask.seed,
        max_tokens=ask.limit,
        stop_token_ids=[end],
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
    )


def part(output: Any) -> Part:
    """What a finished request gave."""
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request by {output.finish_reason!r}; only stop and length are expected")
    return Part(
        tokens=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs),
        spans=tuple(Span(_version(span.version), span.end - span.start) for span in output.weight_versions),
        stopped=output.finish_reason == "stop",
    )


def label(version: Version) -> str:
    """The weights version as vLLM carries it."""
    return f"{version.branch}.{version.n}"


def complete(names: frozenset[str], given: Iterable[str]) -> None:
    """Every tensor of the model is among the given ones; else ValueError."""
    missing = names - set(given)
    if missing:
        raise ValueError(f"{len(missing)} tensors of the model are missing in the new weights, {min(missing)} first")


def weight_names(path: Path) -> frozenset[str]:
    """Names of all tensors in a model directory."""
    names: set[str] = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    return frozenset(names)


def _version(text: str) -> Version:
    branch, n = text.split(".")
    return Version(int(branch), int(n))


def _kv_bytes(config: Any, tokens: int, dtype: str, devices: int) -> int:
    """KV memory of so many tokens on each device: a key and a value for every layer and KV head that it has."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = -(-config.num_key_value_heads // devices)  # with more devices than heads, each still has one
    size = getattr(torch, dtype).itemsize
    return int(tokens * 2 * config.num_hidden_layers * heads * head_dim * size)
