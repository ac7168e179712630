"""vLLM's engine in this process: the only file that knows vLLM (0.32). Nothing of it is imported before an engine is made.

    add -> waiting -> decoding --step--> done(part)
                ^         |
                +- load --+ between two steps, KV cache kept

Every token is recorded with its log-probability after temperature and with the weights version that sampled it. The
prefix cache is salted with the version: a prompt never meets KV of other weights. A request without a token yet when the
weights change starts again, because its prompt may have been read by the old ones. So versions tell how stale a token is:
none was sampled, and none before it in its request was read, by weights older than the request's oldest version.
"""

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from trainer.types import Span, Version

SERIES = "0.32"
"""The releases this file was written for; `make test-vllm` tests what it relies on."""
BLOCK = 128
"""Tokens in the largest KV block that vLLM takes by default; the last block of a request is only partly filled."""


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
class _Ask:
    """A request as it was made, so that it can be made again."""

    prompt: tuple[int, ...]
    limit: int
    temperature: float
    seed: int
    done: Callable[[Part], None]


class VllmEngine:
    """One model with its KV cache. Several generators may share it; they share the weights, too.

    Args:
        path: model directory; its weights are version (0, 0).
        slots: completions decoded at once, over all generators.
        length: tokens of prompt and completion that every slot has KV memory for. Longer ones work, but then the slots
            cannot all be in use: vLLM preempts.
        end: the token that ends a completion.
        dtype, head: number formats of the model and of its language-model head, as in the recipe's `precision`.

    Raises:
        EngineError: vLLM is not installed, of another series, or does not start.
    """

    def __init__(
        self,
        path: Path,
        slots: int,
        length: int,
        end: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        head: Literal["float32", "model"] = "float32",
    ) -> None:
        config = AutoConfig.from_pretrained(path)
        self.slots = slots
        self.context = int(config.max_position_embeddings)
        self.version = Version(0, 0)
        self._end = end
        self._names = _weight_names(path)
        self._asks: dict[str, _Ask] = {}
        self._keys: dict[str, str] = {}
        self._count = 0
        self._failure: Exception | None = None
        self._vllm = _vllm()
        arguments = self._vllm.EngineArgs(
            model=str(path),
            skip_tokenizer_init=True,
            generation_config="vllm",  # the model's own may name further end tokens
            dtype=dtype,
            hf_overrides={"head_dtype": "float32"} if head == "float32" else {},
            logprobs_mode="processed_logprobs",
            max_num_seqs=slots,
            kv_cache_memory_bytes=_kv_bytes(config, max(slots * (length + BLOCK), self.context + BLOCK), dtype),
            gpu_memory_utilization=0.01,  # memory that must be free at the start, no more: KV memory is given above
            enable_prefix_caching=True,
            enable_chunked_prefill=not _on_cpu(),  # a CPU's random state cannot be rewound after a part of a prompt
            async_scheduling=False,  # a step that runs ahead would be stamped with weights it did not see
            enforce_eager=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        self._llm = self._guard("start", _start, self._vllm, arguments)
        self._llm.set_weight_version(_label(self.version))

    def add(
        self, prompt: tuple[int, ...], limit: int, temperature: float, seed: int, done: Callable[[Part], None]
    ) -> str:
        """Ask for up to `limit` tokens after `prompt`; `done` is called by the step that ends it. Returns its key."""
        self._count += 1
        key = str(self._count)
        self._asks[key] = _Ask(prompt, limit, temperature, seed, done)
        self._submit(key)
        return key

    def drop(self, key: str) -> int:
        """Forget a request; returns the tokens it had so far."""
        del self._asks[key]
        return self._withdraw(key)

    def step(self) -> None:
        """One token for every request that is decoding."""
        if not self._llm.has_unfinished_requests():
            raise EngineError(f"vLLM has lost {len(self._asks)} requests: it says that it has nothing to do")
        for output in self._guard("decode", self._llm.step):
            ask = self._asks.pop(output.request_id)
            del self._keys[output.request_id]
            ask.done(_part(output.outputs[0]))

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        """Decode under `weights` (Hugging Face names) from the next token on; they are copied.

        Raises:
            ValueError: a tensor of the model is missing; nothing was loaded.
            EngineError: vLLM failed.
        """
        missing = self._names - weights.keys()
        if missing:
            raise ValueError(
                f"{len(missing)} tensors of the model are missing in the new weights, {min(missing)} first"
            )
        self._guard("load weights", self._llm.collective_rpc, "reload_weights", None, (iter(weights.items()),))
        self._llm.set_weight_version(_label(version))
        self.version = version
        for key in [key for key in self._asks if not self._generated(key)]:
            self._withdraw(key)
            self._submit(key)

    def _submit(self, key: str) -> None:
        ask = self._asks[key]
        self._keys[key] = self._guard(
            "take a request",
            self._llm.add_request,
            key,
            {"prompt_token_ids": list(ask.prompt), "cache_salt": _label(self.version)},
            self._vllm.SamplingParams(
                temperature=ask.temperature,
                seed=ask.seed,
                max_tokens=ask.limit,
                stop_token_ids=[self._end],
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
            ),
        )

    def _withdraw(self, key: str) -> int:
        generated = self._generated(key)
        self._guard("drop a request", self._llm.abort_request, [self._keys.pop(key)], True)
        return generated

    def _generated(self, key: str) -> int:
        return int(self._llm.output_processor.request_states[self._keys[key]].detokenizer.num_output_tokens())

    def _guard(self, action: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call vLLM; after a failure its state is unknown, so every later call fails as well."""
        if self._failure is not None:
            raise EngineError("vLLM failed before and cannot go on; start the run again") from self._failure
        try:
            return call(*arguments)
        except Exception as error:
            self._failure = error
            raise EngineError(f"vLLM could not {action}: {error!r}") from error


def _vllm() -> Any:
    """The module vllm, told to stay in this process, quiet and off the network before it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # errors are raised; logged, they are pages of dump
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


def _on_cpu() -> bool:
    return bool(importlib.import_module("vllm.platforms").current_platform.is_cpu())


def _start(vllm: Any, arguments: Any) -> Any:
    """The engine. On CPUs, vLLM replaces torch.set_num_threads by nothing; the learner still wants it."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        return vllm.LLMEngine.from_engine_args(arguments)
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def _part(output: Any) -> Part:
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"vLLM ended a request by {output.finish_reason!r}; only stop and length are expected")
    return Part(
        tokens=tuple(output.token_ids),
        logprobs=tuple(output.logprobs.logprobs),
        spans=tuple(Span(_version(span.version), span.end - span.start) for span in output.weight_versions),
        stopped=output.finish_reason == "stop",
    )


def _label(version: Version) -> str:
    """The weights version as vLLM carries it."""
    return f"{version.branch}.{version.n}"


def _version(label: str) -> Version:
    branch, n = label.split(".")
    return Version(int(branch), int(n))


def _kv_bytes(config: Any, tokens: int, dtype: str) -> int:
    """KV memory of so many tokens: a key and a value for every layer and KV head."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = getattr(torch, dtype).itemsize
    return int(tokens * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size)


def _weight_names(path: Path) -> set[str]:
    """Names of all tensors in a model directory."""
    names: set[str] = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names |= set(tensors.keys())
    return names
