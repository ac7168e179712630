"""The run's own state: what a checkpoint holds and a rollback or resume brings back, beside learner and curriculum."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from trainer.checkpoint.health import Score
from trainer.types import Version


@dataclass(frozen=True)
class Account:
    """What the weights in force have cost since step 0, along their lineage: a rollback takes back what was lost by it.

    Device-seconds are wall seconds times devices held, and a CPU core counts as a device. Evaluation is in neither.
    """

    generation_seconds: float = 0.0
    """Device-seconds of generation, verification and weight transfer."""
    training_seconds: float = 0.0
    """Device-seconds of optimizer steps."""
    completions: int = 0
    """Completions handed to the learner, those without signal included."""
    generated_tokens: int = 0
    """Their tokens, forced ones included."""
    trained_tokens: int = 0
    """Tokens that carried loss in a step that was applied."""

    @property
    def compute(self) -> float:
        """Device-seconds in all."""
        return self.generation_seconds + self.training_seconds

    def plus(self, **spent: float) -> "Account":
        """With one step's costs added."""
        return replace(self, **{name: getattr(self, name) + amount for name, amount in spent.items()})


@dataclass(frozen=True)
class Patience:
    """How long the held-out score has not improved (early stopping)."""

    bar: float | None = None
    """Score of the last evaluation that counted as an improvement."""
    waited: int = 0
    """Evaluations since then."""

    def after(self, score: float, min_delta: float) -> "Patience":
        """One more evaluation."""
        if self.bar is None or (score > self.bar and score - self.bar >= min_delta):
            return Patience(score)
        return Patience(self.bar, self.waited + 1)


@dataclass
class RunState:
    """Changed by the step machine alone."""

    step: int = 0
    """Optimizer steps behind the weights in force."""
    version: Version = field(default_factory=lambda: Version(0, 0))
    """Weights version that the learner has published last."""
    account: Account = Account()
    window: list[float] = field(default_factory=list)
    """Pass rates of the last training batches, newest last."""
    best: Score | None = None
    """Best held-out evaluation on this lineage."""
    latest: Score | None = None
    """Newest held-out evaluation on this lineage."""
    patience: Patience = Patience()
    forks: dict[int, int] = field(default_factory=dict)
    """Branch -> step at which it began."""

    @property
    def branch(self) -> int:
        return self.version.branch

    @property
    def compute(self) -> float:
        """Device-seconds of generation and training behind the weights in force."""
        return self.account.compute

    def after_evaluation(self, score: Score, min_delta: float) -> None:
        """A held-out evaluation of the weights in force has ended."""
        self.latest = score
        if self.best is None or score.pass_ratio >= self.best.pass_ratio:
            self.best = score
        self.patience = self.patience.after(score.pass_ratio, min_delta)

    def dump(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "step": self.step,
            "version": list(self.version),
            "account": asdict(self.account),
            "window": list(self.window),
            "best": asdict(self.best) if self.best else None,
            "latest": asdict(self.latest) if self.latest else None,
            "patience": asdict(self.patience),
            "forks": [[branch, start] for branch, start in self.forks.items()],
        }

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "RunState":
        """Inverse of `dump`."""
        return cls(
            step=data["step"],
            version=Version(*data["version"]),
            account=Account(**data["account"]),
            window=list(data["window"]),
            best=Score(**data["best"]) if data["best"] else None,
            latest=Score(**data["latest"]) if data["latest"] else None,
            patience=Patience(**data["patience"]),
            forks=dict(data["forks"]),
        )
