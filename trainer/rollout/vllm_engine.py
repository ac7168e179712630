"""vLLM's engine in this process. It does nothing by itself: weights change between two steps, and no pause is needed.

add -> waiting -> decoding --step--> done(part)
            ^         |
            +- load --+ between two steps, KV cache kept
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.rollout.vllm_common import (
    Ask,
    EngineError,
    Part,
    Setup,
    complete,
    import_vllm,
    label,
    on_cpu,
    part,
    prompt,
    sampling,
)
from trainer.types import Version

__all__ = ["EngineError", "VllmEngine"]


class VllmEngine:
    """Implements `Engine` on one device. The arguments are those of `Setup`.

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
        setup = Setup(path, slots, length, end, dtype, head)
        self.slots = slots
        self.context = setup.context()
        self.version = Version(0, 0)
        self._end = end
        self._names = setup.weight_names()
        self._asks: dict[str, Ask] = {}
        self._keys: dict[str, str] = {}
        self._count = 0
        self._failure: Exception | None = None
        self._vllm = import_vllm("CRITICAL")  # errors are raised; logged, they are pages of dump
        arguments = self._vllm.EngineArgs(**setup.arguments(on_cpu()))
        self._llm = self._guard("start", _start, self._vllm, arguments)
        self._llm.set_weight_version(label(self.version))

    def add(
        self, prompt: tuple[int, ...], limit: int, temperature: float, seed: int, done: Callable[[Part], None]
    ) -> str:
        self._count += 1
        key = str(self._count)
        self._asks[key] = Ask(prompt, limit, temperature, seed, done)
        self._submit(key)
        return key

    def drop(self, key: str) -> int:
        del self._asks[key]
        return self._withdraw(key)

    def step(self) -> None:
        """One token for every request that is decoding."""
        if not self._llm.has_unfinished_requests():
            raise EngineError(f"vLLM has lost {len(self._asks)} requests: it says that it has nothing to do")
        for output in self._guard("decode", self._llm.step):
            ask = self._asks.pop(output.request_id)
            del self._keys[output.request_id]
            ask.done(part(output.outputs[0]))

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        complete(self._names, weights)
        self._guard("load weights", self._llm.collective_rpc, "reload_weights", None, (iter(weights.items()),))
        self._llm.set_weight_version(label(version))
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
            prompt(ask, self.version),
            sampling(self._vllm, ask, self._end),
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


def _start(vllm: Any, arguments: Any) -> Any:
    """The engine. On CPUs, vLLM replaces torch.set_num_threads by nothing; the learner still wants it."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        return vllm.LLMEngine.from_engine_args(arguments)
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
