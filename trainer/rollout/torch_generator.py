"""Continuous batching in plain PyTorch for any Hugging Face decoder: fixed slots, one token per `poll`.

    queue -> admit (one prefill per prompt, shared by its group) -> rows 0..n-1 -> decode one token -> finished rows
                     ^                                                                    |
                     +------------- last rows move into the gaps, n shrinks <-------------+

A group starts as soon as there are slots for all of its completions; nobody waits for the longest one. Only rows in
use are computed. Each token is recorded with the log-probability it was sampled with (after temperature) and the
weights version that sampled it; `load` between two polls changes the weights and keeps the KV cache.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.model import Model
from trainer.rollout.length import Forcer, Interruption
from trainer.rollout.slot_cache import SlotCache
from trainer.types import Completion, Group, GroupRequest, Span, Version


@dataclass
class _Slot:
    """What a row belongs to."""

    request: GroupRequest
    started: float


class TorchGenerator:
    """Implements `Generator`. `rng` decides every sampled token, in the order of the polls."""

    def __init__(
        self, model: Model, slots: int, interruption: Interruption, end: int, rng: torch.Generator, length: int = 128
    ) -> None:
        self._model = model.eval()
        self._end = end
        self._interruption = interruption
        self.rng = rng
        self.version = Version(0, 0)
        self._cache = SlotCache(model.config, slots, length, next(model.parameters()).dtype)
        self._forcer = Forcer(slots, interruption)
        self._queue: deque[GroupRequest] = deque()
        self._queued = 0
        self._slots: list[_Slot] = []
        self._partial: dict[int, list[Completion]] = {}
        self._capacity = slots
        self._next = torch.zeros(slots, dtype=torch.long)
        self._position = torch.zeros(slots, dtype=torch.long)
        self._prompt = torch.zeros(slots, dtype=torch.long)
        self._limit = torch.zeros(slots, dtype=torch.long)
        self._temperature = torch.ones(slots)
        self._tokens = torch.zeros(slots, length, dtype=torch.long)
        self._logprobs = torch.zeros(slots, length)
        self._forced = torch.zeros(slots, length, dtype=torch.bool)
        self._versions = torch.zeros(slots, length, 2, dtype=torch.long)

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

    def abort(self) -> int:
        discarded = int((self._position - self._prompt)[: len(self._slots)].sum())
        discarded += sum(len(c.tokens) for completions in self._partial.values() for c in completions)
        self._queue.clear()
        self._queued = 0
        self._slots.clear()
        self._partial.clear()
        return discarded

    @torch.no_grad()
    def poll(self) -> list[Group]:
        finished = self._admit()
        if self._slots:
            finished += self._decode()
        return finished

    def _admit(self) -> list[Group]:
        """Start queued groups for which there is room, in order; the prompts go through the model together."""
        batch: list[GroupRequest] = []
        free = self._capacity - len(self._slots)
        while self._queue and self._queue[0].n <= free:
            batch.append(self._queue.popleft())
            free -= batch[-1].n
        if not batch:
            return []
        first = len(self._slots)
        for request in batch:
            self._queued -= request.n
            self._partial[request.id] = []
            self._slots += [_Slot(request, time.perf_counter()) for _ in range(request.n)]
        rows = slice(first, len(self._slots))
        self._prepare(batch, rows)
        return self._accept(rows, self._prefill(batch, rows))

    def _prepare(self, batch: Sequence[GroupRequest], rows: slice) -> None:
        each = [request for request in batch for _ in range(request.n)]
        self._prompt[rows] = torch.tensor([len(request.prompt.tokens) for request in each])
        self._position[rows] = self._prompt[rows]
        self._limit[rows] = torch.tensor([request.sampling.max_new_tokens for request in each])
        self._temperature[rows] = torch.tensor([request.sampling.temperature for request in each])
        self._forcer.admit(
            rows,
            torch.cat([self._interruption.draw(r.sampling.thinking_budget, r.n, self.rng) for r in batch]),
        )
        self._ensure(int((self._prompt + self._limit)[rows].max()))

    def _ensure(self, length: int) -> None:
        self._cache.ensure(length)
        for name in ("_tokens", "_logprobs", "_forced", "_versions"):
            old = getattr(self, name)
            if old.shape[1] < length:
                new = torch.zeros(old.shape[0], length, *old.shape[2:], dtype=old.dtype)
                new[:, : old.shape[1]] = old
                setattr(self, name, new)

    def _prefill(self, batch: Sequence[GroupRequest], rows: slice) -> Tensor:
        """Log-probabilities [rows, vocabulary] of the first token. Padding is on the right: causality hides it."""
        lengths = [len(request.prompt.tokens) for request in batch]
        width = max(lengths)
        tokens = torch.tensor([[*r.prompt.tokens, *[0] * (width - n)] for r, n in zip(batch, lengths, strict=True)])
        repeats = torch.tensor([request.n for request in batch])
        self._cache.prefill(torch.arange(rows.start, rows.stop), repeats, width)
        causal = torch.ones(width, width, dtype=torch.bool).tril().expand(len(batch), 1, width, width)
        hidden = hidden_states(
            self._model,
            input_ids=tokens,
            position_ids=torch.arange(width).expand(len(batch), width),
            attention_mask=causal,
            past_key_values=self._cache,
            use_cache=True,
        )
        last = hidden[torch.arange(len(batch)), torch.tensor(lengths) - 1].repeat_interleave(repeats, dim=0)
        return logprobs(self._model, last, self._temperature[rows].unsqueeze(1))

    def _decode(self) -> list[Group]:
        n = len(self._slots)
        positions = self._position[:n] - 1
        active = int(positions.max()) + 1
        self._cache.decode(positions, active)
        mask = (torch.arange(active) <= positions.unsqueeze(1)).view(n, 1, 1, active)
        hidden = hidden_states(
            self._model,
            input_ids=self._next[:n].unsqueeze(1),
            position_ids=positions.unsqueeze(1),
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        rows = slice(0, n)
        return self._accept(rows, logprobs(self._model, hidden[:, 0], self._temperature[rows].unsqueeze(1)))

    def _accept(self, rows: slice, logp: Tensor) -> list[Group]:
        """Sample (or force) one token for every row, record it, and retire the rows that are done."""
        sampled = torch.multinomial(logp.exp(), 1, generator=self.rng).squeeze(1)
        generated = self._position[rows] - self._prompt[rows]
        tokens, forced = self._forcer.apply(rows, sampled, generated)
        index = torch.arange(rows.start, rows.stop)
        self._tokens[index, generated] = tokens
        self._logprobs[index, generated] = logp.gather(1, tokens.unsqueeze(1)).squeeze(1)
        self._forced[index, generated] = forced
        self._versions[index, generated] = torch.tensor(self.version)
        self._next[rows] = tokens
        self._position[rows] += 1
        stop = (tokens == self._end) & ~forced
        done = stop | (generated + 1 >= self._limit[rows])
        if not bool(done.any()):
            return []
        return self._retire(
            (done.nonzero().squeeze(1) + rows.start).tolist(), (stop.nonzero().squeeze(1) + rows.start).tolist()
        )

    def _retire(self, done: list[int], stopped: Sequence[int]) -> list[Group]:
        finished, now, stopped = [], time.perf_counter(), frozenset(stopped)  # type: ignore[assignment]
        for row in done:
            request = self._slots[row].request
            mine = self._partial[request.id]
            mine.append(self._completion(row, row in stopped, now))
            if len(mine) == request.n:
                finished.append(Group(request, tuple(self._partial.pop(request.id))))
        self._compact(done)
        return finished

    def _completion(self, row: int, stopped: bool, now: float) -> Completion:
        n = int(self._position[row] - self._prompt[row])
        versions = [Version(*pair) for pair in self._versions[row, :n].tolist()]
        return Completion(
            tokens=tuple(self._tokens[row, :n].tolist()),
            logprobs=tuple(self._logprobs[row, :n].tolist()),
            loss_mask=tuple((~self._forced[row, :n]).tolist()),
            spans=tuple(Span(version, len(list(run))) for version, run in groupby(versions)),
            finish="stop" if stopped else "length",
            interrupted=bool(self._forcer.interrupted[row]),
            seconds=now - self._slots[row].started,
        )

    def _compact(self, done: list[int]) -> None:
        """Move the last rows into the gaps, so that the rows in use stay contiguous."""
        remaining = len(self._slots) - len(done)
        gone = set(done)
        gaps = [row for row in done if row < remaining]
        movers = [row for row in range(remaining, len(self._slots)) if row not in gone]
        if gaps:
            source, target = torch.tensor(movers), torch.tensor(gaps)
            self._cache.move(source, target)
            self._forcer.move(source, target)
            for state in (
                self._next, self._position, self._prompt, self._limit, self._temperature,
                self._tokens, self._logprobs, self._forced, self._versions,
            ):  # fmt: skip
                state[target] = state[source]
            for mover, gap in zip(movers, gaps, strict=True):
                self._slots[gap] = self._slots[mover]
        del self._slots[remaining:]
