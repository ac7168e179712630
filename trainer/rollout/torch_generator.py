"""Continuous batching in plain PyTorch for any Hugging Face decoder: fixed slots, one token per completion and `poll`.

    queue -> admit (one pass over a prompt for its whole group) -> rows 0..n-1 -> one token -> finished rows
                     ^                                                                |
                     +----------- last rows move into the gaps, n shrinks <-----------+

A group starts as soon as there are slots for all of its completions; nobody waits for the longest one. Only rows in
use are computed. Each token is recorded with the log-probability it was sampled with (after temperature) and the
weights version that sampled it; `load` between two polls changes the weights and keeps the KV cache. There is no random
state: a token is decided by the request's seed, the completion, its place and the distribution.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.decoder import supports
from trainer.learn.fp32_head import logits
from trainer.model import Model
from trainer.rollout.forward import ModuleForward, NewPrompt, SlotForward
from trainer.rollout.inverse_cdf import choose
from trainer.rollout.length import Forcer, Interruption
from trainer.rollout.packed_forward import PackedForward
from trainer.rollout.seeds import stream, uniforms
from trainer.types import Completion, Group, GroupRequest, Span, Version


@dataclass
class _Slot:
    """What a row belongs to."""

    request: GroupRequest
    started: float
    marks: list[tuple[int, Version]]
    """Number of generated tokens from which each weights version sampled; the first is 0."""


@dataclass(frozen=True)
class Snapshot:
    """Everything in flight, without the weights."""

    version: Version
    queue: tuple[GroupRequest, ...]
    slots: tuple[_Slot, ...]
    partial: Mapping[int, tuple[Completion, ...]]
    rows: Mapping[str, NDArray[np.generic]]
    cache: Sequence[Tensor]
    at: float


class TorchGenerator:
    """Implements `Generator` and samples with the weights of `model`, which generators may share."""

    def __init__(
        self,
        model: Model,
        slots: int,
        interruption: Interruption,
        end: int,
        *,
        head: torch.dtype = torch.float32,
        length: int = 64,
    ) -> None:
        """`end` is the id of the end token, `head` the format of the language-model head (that of the learner's).

        Rows hold `length` tokens at first and grow when a request needs it.
        """
        self._model = model.eval()
        self._end = end
        self._head = head
        self._interruption = interruption
        self.version = Version(0, 0)
        self._forward: SlotForward = (PackedForward if supports(model) else ModuleForward)(model, slots, length)
        self._forcer = Forcer(slots, interruption)
        self._queue: deque[GroupRequest] = deque()
        self._queued = 0
        self._slots: list[_Slot] = []
        self._partial: dict[int, list[Completion]] = {}
        self._capacity = slots
        self._device = next(model.parameters()).device
        self._next = np.zeros(slots, dtype=np.int64)
        self._position = np.zeros(slots, dtype=np.int64)
        self._prompt = np.zeros(slots, dtype=np.int64)
        self._limit = np.zeros(slots, dtype=np.int64)
        self._temperature = np.ones(slots, dtype=np.float32)
        self._stream = np.zeros(slots, dtype=np.uint64)
        self._tokens = np.zeros((slots, length), dtype=np.int64)
        self._logprobs = np.zeros((slots, length), dtype=np.float32)
        self._forced = np.zeros((slots, length), dtype=np.bool_)

    @property
    def inflight(self) -> int:
        return len(self._slots)

    @property
    def room(self) -> int:
        return self._capacity - len(self._slots) - self._queued

    def submit(self, request: GroupRequest) -> None:
        if request.n > self._capacity:
            raise ValueError(f"a group of {request.n} completions does not fit into {self._capacity} slots")
        self._queue.append(request)
        self._queued += request.n

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        self._model.load_state_dict(weights)
        self.version = version
        generated = self._position - self._prompt
        for row, slot in enumerate(self._slots):
            slot.marks.append((int(generated[row]), version))

    def abort(self) -> int:
        discarded = int((self._position - self._prompt)[: len(self._slots)].sum())
        discarded += sum(len(c.tokens) for completions in self._partial.values() for c in completions)
        self._queue.clear()
        self._queued = 0
        self._slots.clear()
        self._partial.clear()
        return discarded

    @torch.inference_mode()
    def snapshot(self) -> Snapshot:
        """A copy of everything in flight; `restore` goes on from it as if nothing had happened since."""
        n = len(self._slots)
        return Snapshot(
            version=self.version,
            queue=tuple(self._queue),
            slots=tuple(_copied(slot) for slot in self._slots),
            partial={key: tuple(completions) for key, completions in self._partial.items()},
            rows={name: state[:n].copy() for name, state in self._rows()},
            cache=self._forward.save(n, self._active(n)),
            at=time.perf_counter(),
        )

    @torch.inference_mode()
    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of this generator, any number of times. The weights are the caller's: `load` them before."""
        away = time.perf_counter() - snapshot.at
        self.version = snapshot.version
        self._queue = deque(snapshot.queue)
        self._queued = sum(request.n for request in snapshot.queue)
        self._slots = [_copied(slot, away) for slot in snapshot.slots]
        self._partial = {key: list(completions) for key, completions in snapshot.partial.items()}
        self._ensure(snapshot.rows["_tokens"].shape[1])
        for name, state in self._rows():
            saved = snapshot.rows[name]
            state[tuple(slice(size) for size in saved.shape)] = saved
        self._forward.restore(snapshot.cache)

    @torch.inference_mode()
    def poll(self) -> list[Group]:
        running = len(self._slots)
        prompts = self._admit()
        if not self._slots:
            return []
        active = self._active(running)
        hidden = self._forward.step(
            self._tensor(self._next[:running]), self._tensor(self._position[:running] - 1), active, prompts
        )
        return self._accept(logits(self._model, hidden, self._head)[: len(self._slots)])

    def _admit(self) -> list[NewPrompt]:
        """Start queued groups for which there is room, in order, in the rows after those in use."""
        batch: list[GroupRequest] = []
        first = len(self._slots)
        free = self._capacity - first
        while self._queue and self._queue[0].n <= free:
            batch.append(self._queue.popleft())
            free -= batch[-1].n
        if not batch:
            return []
        now = time.perf_counter()
        cuts: list[int] = []
        for request in batch:
            self._queued -= request.n
            self._partial[request.id] = []
            self._slots += [_Slot(request, now, [(0, self.version)]) for _ in range(request.n)]
            cuts += self._interruption.draw(request.sampling.thinking_budget, request.seed, request.n)
        rows = slice(first, len(self._slots))
        each = [request for request in batch for _ in range(request.n)]
        self._prompt[rows] = self._position[rows] = [len(request.prompt.tokens) for request in each]
        self._limit[rows] = [request.sampling.max_new_tokens for request in each]
        self._temperature[rows] = [request.sampling.temperature for request in each]
        self._stream[rows] = [stream(request.seed, index) for request in batch for index in range(request.n)]
        self._forcer.admit(rows, cuts)
        self._ensure(int((self._prompt + self._limit)[rows].max()))
        return [NewPrompt(request.prompt.tokens, request.n) for request in batch]

    def _ensure(self, length: int) -> None:
        """Rows of `length` tokens fit afterwards; room grows by a half at least, so that it seldom has to."""
        have = self._tokens.shape[1]
        if length <= have:
            return
        length = max(length, have + have // 2)
        self._forward.ensure(length)
        for name in ("_tokens", "_logprobs", "_forced"):
            setattr(self, name, np.pad(getattr(self, name), ((0, 0), (0, length - have))))

    def _accept(self, scores: Tensor) -> list[Group]:
        """Sample (or force) one token for every row, record it, and retire the rows that are done."""
        n = len(self._slots)
        generated = self._position[:n] - self._prompt[:n]
        due = self._forcer.due(generated)
        chosen, chances = choose(
            scores,
            self._tensor(self._temperature[:n]),
            self._tensor(uniforms(self._stream[:n], generated)),
            None if due is None else self._tensor(due),
        )
        tokens = chosen.cpu().numpy()
        self._forcer.saw(tokens)
        rows = np.arange(n)
        self._tokens[rows, generated] = tokens
        self._logprobs[rows, generated] = chances.cpu().numpy()
        self._forced[rows, generated] = False if due is None else due >= 0
        self._next[:n] = tokens
        self._position[:n] += 1
        stop = tokens == self._end
        if due is not None:
            stop &= due < 0
        done = stop | (generated + 1 >= self._limit[:n])
        return self._retire(done.nonzero()[0].tolist(), stop) if done.any() else []

    def _retire(self, done: Sequence[int], stopped: NDArray[np.bool_]) -> list[Group]:
        finished, now = [], time.perf_counter()
        for row in done:
            request = self._slots[row].request
            mine = self._partial[request.id]
            mine.append(self._completion(row, bool(stopped[row]), now))
            if len(mine) == request.n:
                finished.append(Group(request, tuple(self._partial.pop(request.id))))
        self._compact(done)
        return finished

    def _completion(self, row: int, stopped: bool, now: float) -> Completion:
        slot, n = self._slots[row], int(self._position[row] - self._prompt[row])
        logprobs = self._logprobs[row, :n]
        if np.isnan(logprobs).any():
            raise FloatingPointError(
                f"prompt {slot.request.prompt.ordinal}: the model gives logits that are not numbers under {self.version}"
            )
        ends = [start for start, _ in slot.marks[1:]] + [n]
        return Completion(
            tokens=tuple(self._tokens[row, :n].tolist()),
            logprobs=tuple(logprobs.tolist()),
            loss_mask=tuple((~self._forced[row, :n]).tolist()),
            spans=tuple(Span(v, end - start) for (start, v), end in zip(slot.marks, ends, strict=True) if end > start),
            finish="stop" if stopped else "length",
            interrupted=bool(self._forcer.interrupted[row]),
            seconds=now - slot.started,
        )

    def _compact(self, done: Sequence[int]) -> None:
        """Move the last rows into the gaps, so that the rows in use stay contiguous."""
        remaining = len(self._slots) - len(done)
        gone = set(done)
        gaps = [row for row in done if row < remaining]
        movers = [row for row in range(remaining, len(self._slots)) if row not in gone]
        if gaps:
            self._forward.move(torch.tensor(movers), torch.tensor(gaps), int(self._position[movers].max()))
            for _, state in self._rows():
                state[gaps] = state[movers]
            for mover, gap in zip(movers, gaps, strict=True):
                self._slots[gap] = self._slots[mover]
        del self._slots[remaining:]

    def _active(self, rows: int) -> int:
        """Entries of the cache that the first `rows` rows need in the next pass, one more than are stored."""
        return int(self._position[:rows].max(initial=0))

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _rows(self) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Every array with one entry per slot."""
        for name in (
            "_next", "_position", "_prompt", "_limit", "_temperature", "_stream", "_tokens", "_logprobs", "_forced"
        ):  # fmt: skip
            yield name, getattr(self, name)
        yield from self._forcer.state.items()


def _copied(slot: _Slot, away: float = 0.0) -> _Slot:
    return _Slot(slot.request, slot.started + away, list(slot.marks))
