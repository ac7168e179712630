"""The nouns of the trainer: what flows from prompts to the learner. Plain frozen data, no behaviour worth a file."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Finish = Literal["stop", "length"]


class Version(NamedTuple):
    """Weights version. `n` grows with every publication and is never reused; staleness compares it within one branch."""

    branch: int
    n: int


class Item(NamedTuple):
    """One training opportunity: a prompt (by ordinal) in one epoch. Trained at most once."""

    epoch: int
    ordinal: int


@dataclass(frozen=True)
class Prompt:
    """A prompt with its token ids, and what only the verifier looks at."""

    ordinal: int
    text: str
    tokens: tuple[int, ...]
    answer: str = ""
    """Reference answer; empty where tests decide."""
    tests: tuple[str, ...] = ()
    """Unit tests of a code task, in the form its task defines."""
    id: str = ""
    """Name in the data file."""
    difficulty: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the verifier says about one completion."""

    reward: float
    passed: bool


@dataclass(frozen=True)
class Sampling:
    """Settings of one request; fixed for its whole life, so a change takes effect with the next request."""

    temperature: float
    max_new_tokens: int
    thinking_budget: int
    """Tokens before thinking may be cut; 0: it never is."""


@dataclass(frozen=True)
class GroupRequest:
    """Ask for `n` completions of one prompt. `id` is unique within the process.

    `seed` (0 .. 2**63-1) decides every sampled token: completion i draws its own numbers from (seed, i), whatever else is
    decoded beside it, so that a resumed, replayed or forked run samples alike.
    """

    id: int
    prompt: Prompt
    n: int
    sampling: Sampling
    seed: int = 0


@dataclass(frozen=True)
class Span:
    """A run of consecutive tokens sampled under one weights version."""

    version: Version
    tokens: int


@dataclass(frozen=True)
class Completion:
    """One completion. The three sequences have equal length, one entry per generated token, the end token included."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token as it was sampled, after temperature: the denominator of the importance ratio."""
    loss_mask: tuple[bool, ...]
    """False for tokens that were forced by an interruption; they carry no loss."""
    spans: tuple[Span, ...]
    finish: Finish
    interrupted: bool
    seconds: float
    """Wall time from admission to the last token."""

    @property
    def oldest(self) -> Version:
        """Oldest weights that sampled a token of this completion."""
        return min(span.version for span in self.spans)


@dataclass(frozen=True)
class Group:
    """All completions of one request."""

    request: GroupRequest
    completions: tuple[Completion, ...]

    @property
    def oldest(self) -> Version:
        return min(completion.oldest for completion in self.completions)


@dataclass(frozen=True)
class ScoredGroup:
    """A verified group: what the learner trains on."""

    item: Item
    group: Group
    verdicts: tuple[Verdict, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(verdict.reward for verdict in self.verdicts)

    @property
    def passed(self) -> int:
        return sum(verdict.passed for verdict in self.verdicts)

    @property
    def signal(self) -> str:
        """mixed, all_pass or all_fail; only mixed groups give a gradient (rewards not all equal)."""
        if len(set(self.rewards)) > 1:
            return "mixed"
        return "all_pass" if self.passed else "all_fail"
