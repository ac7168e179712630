"""Groups of completions from vLLM, in this process or in another. What is known of vLLM itself is in `vllm_common`.

    submit -> queue -> drafts --add--> engine --step--> part -> phrase? -> next part, or completion -> group

A completion is made of one or two requests to the engine, called parts: up to the position where its thinking is to be
cut, and what follows. vLLM's own thinking budget is not used: it counts from `<think>`, takes only the whole phrase for
an end of thinking, and does not say which tokens it forced. Two parts need nothing but a limit on the tokens, whatever
the device and the model runner. For the second part everything before it is read again, by the weights then in force;
what was cached under the same weights is reused.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from trainer.rollout.length import Interruption
from trainer.rollout.seeds import request_seed
from trainer.rollout.vllm_common import Engine, Part
from trainer.types import Completion, Finish, Group, GroupRequest, Span, Version


@dataclass
class _Draft:
    """A completion in the making."""

    request: GroupRequest
    index: int
    cut: int
    started: float
    key: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    interrupted: bool = False

    def extend(self, tokens: tuple[int, ...], logprobs: tuple[float, ...], spans: tuple[Span, ...], own: bool) -> None:
        self.tokens += tokens
        self.logprobs += logprobs
        self.loss_mask += [own] * len(tokens)
        for span in spans:
            if self.spans and self.spans[-1].version == span.version:
                span = Span(span.version, self.spans.pop().tokens + span.tokens)
            self.spans.append(span)

    def completed(self, finish: Finish) -> Completion:
        return Completion(
            tokens=tuple(self.tokens),
            logprobs=tuple(self.logprobs),
            loss_mask=tuple(self.loss_mask),
            spans=tuple(self.spans),
            finish=finish,
            interrupted=self.interrupted,
            seconds=time.perf_counter() - self.started,
        )


class VllmGenerator:
    """Implements `Generator` with `slots` of the engine's slots. A group starts when all of its completions can.

    Sampling depends on the seed of the request and on the probabilities alone. Forced tokens have log-probability 0
    (nothing was drawn) and the version in force when they were forced.
    """

    def __init__(self, engine: Engine, slots: int, interruption: Interruption) -> None:
        self._engine = engine
        self._capacity = slots
        self._interruption = interruption
        self._queue: deque[GroupRequest] = deque()
        self._drafts: dict[tuple[int, int], _Draft] = {}
        self._partial: dict[int, dict[int, Completion]] = {}
        self._finished: list[Group] = []

    @property
    def inflight(self) -> int:
        return len(self._drafts)

    @property
    def room(self) -> int:
        return self._capacity - len(self._drafts) - sum(request.n for request in self._queue)

    def submit(self, request: GroupRequest) -> None:
        if request.n > self._capacity:
            raise ValueError(f"a group of {request.n} completions does not fit into {self._capacity} slots")
        length = len(request.prompt.tokens) + request.sampling.max_new_tokens
        if length > self._engine.context:
            raise ValueError(
                f"prompt and max_new_tokens make {length} tokens; the model has {self._engine.context} positions"
            )
        self._queue.append(request)

    def poll(self) -> list[Group]:
        self._admit()
        if self._drafts:
            self._engine.step()
        finished, self._finished = self._finished, []
        return finished

    def load(self, weights: Mapping[str, Tensor], version: Version) -> None:
        self._engine.load(weights, version)

    def abort(self) -> int:
        discarded = sum(len(c.tokens) for completions in self._partial.values() for c in completions.values())
        discarded += sum(len(c.tokens) for group in self._finished for c in group.completions)
        for draft in self._drafts.values():
            discarded += len(draft.tokens) + self._engine.drop(draft.key)
        self._queue.clear()
        self._drafts.clear()
        self._partial.clear()
        self._finished.clear()
        return discarded

    def _admit(self) -> None:
        while self._queue and self._queue[0].n <= self._capacity - len(self._drafts):
            request = self._queue.popleft()
            self._partial[request.id] = {}
            cuts = self._interruption.draw(request.sampling.thinking_budget, request.seed, request.n)
            drafts = [_Draft(request, index, cut, time.perf_counter()) for index, cut in enumerate(cuts)]
            self._drafts |= {(request.id, draft.index): draft for draft in drafts}
            for draft in drafts:
                self._go_on(draft)

    def _go_on(self, draft: _Draft) -> None:
        """Force the phrase where it is due, then ask for what comes next."""
        sampling = draft.request.sampling
        limit = sampling.max_new_tokens
        if len(draft.tokens) == draft.cut < limit and self._interruption.closing not in draft.tokens:
            phrase = self._interruption.phrase[: limit - draft.cut]
            draft.extend(phrase, (0.0,) * len(phrase), (Span(self._engine.version, len(phrase)),), own=False)
            draft.interrupted = True
        at = len(draft.tokens)
        if at == limit:
            self._finish(draft, "length")
            return
        draft.key = self._engine.add(
            prompt=(*draft.request.prompt.tokens, *draft.tokens),
            limit=(draft.cut if at < draft.cut < limit else limit) - at,
            temperature=sampling.temperature,
            seed=request_seed(draft.request.seed, draft.index, at),
            done=lambda part: self._received(draft, part),
        )

    def _received(self, draft: _Draft, part: Part) -> None:
        draft.extend(part.tokens, part.logprobs, part.spans, own=True)
        if part.stopped:
            self._finish(draft, "stop")
        else:
            self._go_on(draft)

    def _finish(self, draft: _Draft, finish: Finish) -> None:
        request = draft.request
        del self._drafts[request.id, draft.index]
        completions = self._partial[request.id]
        completions[draft.index] = draft.completed(finish)
        if len(completions) == request.n:
            del self._partial[request.id]
            self._finished.append(Group(request, tuple(completions[index] for index in range(request.n))))
