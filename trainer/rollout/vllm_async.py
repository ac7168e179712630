"""vLLM's engine in a process of its own (AsyncLLM): it decodes while this process does other things, on one GPU or several.

    add ──> loop thread ──> engine core (process) ──> loop thread ──> step: done(part)
    load ─> stage ─> pause(keep) ─> start ─> update ─> finish ─> resume      KV cache kept, all between two tokens

Calls come from one thread; what vLLM needs of asyncio runs in another one that belongs to the engine. Nobody waits for ever:
every call has a deadline, and an engine core that is gone, or gives no token while it has work, is a failure. After one the
state of vLLM is unknown, so its processes are killed and every later call says so. A file that is refused is no failure:
nothing was touched.
"""

import asyncio
import atexit
import contextlib
import hashlib
import importlib
import math
import os
import queue
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import Tensor

from trainer.rollout.vllm_common import (
    BACKEND,
    EXTENSION,
    OWNER,
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
from trainer.rollout.vllm_distance import Loop, Watch, environment
from trainer.sync.files import SHARED_MEMORY, write
from trainer.types import Version

TICK = 0.02
"""Seconds that a step waits for a part to end."""
GRACE = 3.0
"""Seconds that vLLM's processes have for an orderly end; nothing is lost with them."""

Transfer = Literal["file", "nccl", "ipc"]
"""How weights arrive: in a file that the workers map; over NCCL from the learner; as CUDA handles on the same machine."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which an engine that does not answer has failed."""

    start: float = 600.0
    """From nothing to a model that can decode."""
    call: float = 60.0
    """Everything short: pause, resume, drop."""
    load: float = 300.0
    """To take new weights."""
    stall: float = 180.0
    """Without a token while there is work. Must exceed the time for the longest prompt, and the first step's."""


@dataclass(eq=False)
class _Flight:
    """A request that vLLM has. The two tasks live in the loop thread."""

    key: str
    ask: Ask
    version: Version
    adding: "asyncio.Task[Any]"
    outcome: "asyncio.Task[Any]"


class AsyncEngine:
    """Implements `Engine`. The arguments are those of `Setup`, and:

    Args:
        transfer: how weights arrive. With nccl and ipc by `join`, `begin_update`, `receive` and `end_update`, while the
            learner sends them (trainer.sync.vllm_transfer); files can be loaded in any case.
        threads: CPU threads of the engine core; None: those that the environment says.

    Raises:
        EngineError: vLLM is not installed, of another series, or does not start in time.
        ValueError: the model is to be split on a machine without GPUs.
    """

    def __init__(
        self,
        path: Path,
        slots: int,
        length: int,
        end: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        head: Literal["float32", "model"] = "float32",
        tensor_parallel_size: int = 1,
        *,
        transfer: Transfer = "file",
        threads: int | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        setup = Setup(path, slots, length, end, dtype, head, tensor_parallel_size)
        self.slots = slots
        self.context = setup.context()
        self.version = Version(0, 0)
        self._end = end
        self._layout_names = setup.weight_names()
        self._transfer = transfer
        self._group = ""
        self._deadlines = deadlines or Deadlines()
        self._flights: dict[str, _Flight] = {}
        self._done: queue.SimpleQueue[_Flight] = queue.SimpleQueue()
        self._count = 0
        self._failure: BaseException | None = None
        self._vllm = import_vllm("ERROR")  # what goes wrong in another process is not raised here in full
        arguments = setup.arguments(on_cpu()) | {
            "worker_extension_cls": EXTENSION,
            "weight_transfer_config": {"backend": BACKEND if transfer == "file" else transfer},
        }
        self._loop = Loop()
        self._llm: Any = None
        variables = {OWNER: str(os.getpid()), "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(self._deadlines.start))}
        if threads is not None:
            variables["OMP_NUM_THREADS"] = str(threads)
        try:
            # vLLM keeps the deadline by itself, and leaves no process behind.
            with environment(variables):
                starting = self._start(arguments)
                self._llm = self._await("start", starting, self._deadlines.start + self._deadlines.call)
            self._await("name its weights", self._name(), self._deadlines.call)
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)
        self._watch = Watch(self._deadlines.stall)

    @property
    def progress(self) -> int:
        """Grows as long as tokens come, or requests end; looked at once in a while."""
        return self._watch.moves

    @property
    def processes(self) -> tuple[int, ...]:
        """Process ids of the engine core."""
        return tuple(process.pid for process in self._cores())

    def add(
        self, prompt: tuple[int, ...], limit: int, temperature: float, seed: int, done: Callable[[Part], None]
    ) -> str:
        self._sound()
        self._count += 1
        if not self._flights:
            self._watch.reset()
        key = str(self._count)
        self._submit(key, Ask(prompt, limit, temperature, seed, done))
        return key

    def drop(self, key: str) -> int:
        return int(self._await("drop a request", self._withdraw(self._flights.pop(key)), self._deadlines.call))

    def step(self) -> None:
        """Wait for a moment, and call `done` of every request that has ended."""
        self._sound()
        ended = self._ended()
        if ended:
            self._watch.reset()
        elif self._flights and self._watch.due():
            tokens = self._await("say what it has", self._tokens(), self._deadlines.call)
            if self._watch.stalled(tokens):
                self._fail(TimeoutError(f"no token came in {self._watch.patience:g} s"), "decode")
        for flight in ended:
            if self._flights.get(flight.key) is not flight:
                continue  # dropped, or asked again under new weights, while it ended
            del self._flights[flight.key]
            flight.ask.done(self._part(flight))

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        """Decode under `weights` from the next token on. They go through a file in shared memory.

        Raises:
            ValueError: a tensor of the model is missing; nothing was loaded.
            EngineError: vLLM failed.
        """
        complete(self._layout_names, weights)
        with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as directory:
            path = Path(directory) / "weights"
            self.load_file(path, write(path, weights, weights.items()), version)

    def load_file(self, path: Path, digest: str, version: Version) -> None:
        """Decode under the weights of a file from the next token on; every worker proves the file before any loads it.

        Raises:
            ValueError: a worker refuses the file; nothing was loaded, and decoding goes on under the old weights.
            EngineError: vLLM failed, or what it loaded is not that file.
        """
        self._sound()
        staged = self._llm.collective_rpc("stage_weights", args=(str(path.absolute()), digest))
        refusals = self._await("look at new weights", staged, self._deadlines.load)
        for reason in refusals:
            if reason:
                raise ValueError(reason)
        if self._transfer == "file":
            self.begin_update()
            self.receive({"digest": digest})
            self._await("end an update", self._llm.finish_weight_update(), self._deadlines.load)
        else:  # vLLM knows one backend for each engine
            self._pause()
            self._await("load weights", self._llm.collective_rpc("load_staged", args=(digest,)), self._deadlines.load)
        loaded = self._await("say what it loaded", self._llm.collective_rpc("loaded_digest"), self._deadlines.call)
        if set(loaded) != {digest}:
            self._fail(ValueError(f"it holds {', '.join(sorted(set(loaded)))} instead of {digest}"), "load weights")
        self._go_on(version)

    def fingerprint(self) -> str:
        """A digest of the weights that it holds; equal in every engine of the same layout that holds the same ones.

        Of what the workers took out of the file where weights arrive in one; else of every tensor as it lies on the device,
        which reads the whole model back: for after a rollback, or now and then.
        """
        self._sound()
        if self._transfer == "file":
            found = self._await("say what it loaded", self._llm.collective_rpc("loaded_digest"), self._deadlines.call)
            return str(found[0])
        workers = self._await("sum up its weights", self._llm.compute_weight_checksums(), self._deadlines.load)
        lines = sorted(f"{name} {digest}\n" for worker in workers for name, digest in worker.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def join(self, group: str, info: Mapping[str, Any]) -> None:
        """Meet the learner, with what its end of vLLM's weight transfer says for it; returns when both are there. Nothing
        is done in a group that it is in; another one is left first."""
        self._sound()
        if group == self._group:
            return
        if self._group:
            leaving = self._llm.shutdown_weight_transfer_engine()
            self._await("leave the weight transfer", leaving, self._deadlines.call)
        self._group = group
        request = self._rl().WeightTransferInitRequest(init_info=dict(info))
        self._await("join the weight transfer", self._llm.init_weight_transfer_engine(request), self._deadlines.load)

    def begin_update(self) -> None:
        """Stop between two tokens; requests and their KV cache stay where they are."""
        self._pause()
        self._await("begin an update", self._llm.start_weight_update(), self._deadlines.load)

    def receive(self, info: Mapping[str, Any]) -> None:
        """Take what `info` announces: all weights, or a part of them; returns when the model has it."""
        self._sound()
        request = self._rl().WeightTransferUpdateRequest(update_info=dict(info))
        self._await("load weights", self._llm.update_weights(request), self._deadlines.load)

    def end_update(self, version: Version) -> None:
        """Go on under the new weights. Requests without a token yet begin again: old weights may have read their prompt."""
        self._await("end an update", self._llm.finish_weight_update(), self._deadlines.load)
        self._go_on(version)

    def _pause(self) -> None:
        self._sound()
        self._await("pause", self._llm.pause_generation(mode="keep", clear_cache=False), self._deadlines.call)

    def _go_on(self, version: Version) -> None:
        self._await("name its weights", self._llm.update_weight_version(label(version)), self._deadlines.call)
        self.version = version
        unread = self._await("say what it has", self._without_a_token(), self._deadlines.call)
        for key in unread:
            flight = self._flights[key]
            self._await("drop a request", self._withdraw(flight), self._deadlines.call)
            self._submit(key, flight.ask)
        self._await("resume", self._llm.resume_generation(), self._deadlines.call)
        self._watch.reset()

    def close(self) -> None:
        """End vLLM's processes and the thread. May be repeated."""
        atexit.unregister(self.close)
        if self._llm is not None and self._failure is None:
            with contextlib.suppress(Exception):
                self._loop.soon(self._llm.output_handler.cancel)  # or it would log the end as a failure
                self._llm.shutdown(timeout=GRACE)
        self._failure = self._failure or EngineError("it was closed")
        self._kill()
        self._llm = None
        self._loop.stop()

    # In the loop thread.

    async def _start(self, arguments: Mapping[str, Any]) -> Any:
        if self._transfer == "ipc":
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # CUDA handles reach our own child process pickled
        module = importlib.import_module("vllm.v1.engine.async_llm")
        return module.AsyncLLM.from_engine_args(self._vllm.AsyncEngineArgs(**arguments))

    async def _name(self) -> None:
        await self._llm.update_weight_version(label(self.version))

    async def _add(self, key: str, ask: Ask, version: Version) -> Any:
        return await self._llm.add_request(key, prompt(ask, version), sampling(self._vllm, ask, self._end))

    async def _follow(self, flight: _Flight) -> Any:
        return await (await flight.adding).get()

    async def _withdraw(self, flight: _Flight) -> int:
        """Abort a request; the tokens that it had."""
        collector = await flight.adding
        state = self._llm.output_processor.request_states.get(collector.request_id)
        if state is None:  # it has ended already
            return len((await flight.outcome).outputs[0].token_ids)
        await self._llm.abort(collector.request_id, internal=True)
        return int(state.detokenizer.num_output_tokens())

    async def _generated(self, flight: _Flight) -> int | None:
        """Tokens so far; None when it has ended."""
        state = self._llm.output_processor.request_states.get((await flight.adding).request_id)
        return None if state is None else int(state.detokenizer.num_output_tokens())

    async def _without_a_token(self) -> list[str]:
        return [key for key, flight in self._flights.items() if await self._generated(flight) == 0]

    async def _tokens(self) -> list[int | None]:
        return [await self._generated(flight) for flight in self._flights.values()]

    # In the caller's thread.

    def _submit(self, key: str, ask: Ask) -> None:
        flight = _Flight(key, ask, self.version, None, None)  # type: ignore[arg-type]

        def begin() -> None:
            flight.adding = asyncio.ensure_future(self._add(key, ask, flight.version))
            flight.outcome = asyncio.ensure_future(self._follow(flight))
            flight.outcome.add_done_callback(landed)

        def landed(outcome: "asyncio.Task[Any]") -> None:
            outcome.exception()  # so that asyncio does not complain of those that nobody asks for any more
            self._done.put(flight)

        self._flights[key] = flight
        self._loop.soon(begin)

    def _ended(self) -> list[_Flight]:
        """Flights that have ended; waits for the first one, but not long."""
        ended: list[_Flight] = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._done.get(timeout=TICK))
            while True:
                ended.append(self._done.get_nowait())
        return ended

    def _part(self, flight: _Flight) -> Part:
        try:
            return part(flight.outcome.result().outputs[0])
        except Exception as error:
            self._fail(error, "decode")

    def _sound(self) -> None:
        if self._failure is not None:
            raise EngineError("vLLM failed before and cannot go on; start the generator again") from self._failure
        if self._llm.errored:
            self._fail(RuntimeError("its process ended"), "go on")

    def _await(self, action: str, answer: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """The answer of vLLM within `seconds`."""
        if self._failure is not None:
            answer.close()
            raise EngineError("vLLM failed before and cannot go on; start the generator again") from self._failure
        try:
            return self._loop.run(answer, seconds)
        except TimeoutError:
            self._fail(TimeoutError(f"no answer came in {seconds:g} s"), action)
        except Exception as error:
            self._fail(error, action)

    def _fail(self, error: BaseException, action: str) -> NoReturn:
        """Kill what is left, and say why in one sentence."""
        self._failure = error
        ended = [str(process.exitcode) for process in self._cores() if process.exitcode is not None]
        self._kill()
        reason = f"its process ended with code {', '.join(ended)}" if ended else str(error) or type(error).__name__
        raise EngineError(f"vLLM could not {action}: {' '.join(reason.split())}") from error

    def _kill(self) -> None:
        for process in self._cores():
            with contextlib.suppress(Exception):
                process.kill()

    def _cores(self) -> list[Any]:
        manager = self._llm and self._llm.engine_core.resources.engine_manager
        return list(manager.processes) if manager else []

    def _rl(self) -> Any:
        return importlib.import_module("vllm.distributed.weight_transfer.base")
