"""The run's own state: what a checkpoint holds and a rollback or resume brings back, beside learner and curriculum."""

from dataclasses import dataclass, field
from typing import Any

from trainer.checkpoint.health import Score
from trainer.types import Version


@dataclass
class RunState:
    """Changed by the step machine alone."""

    step: int = 0
    """Optimizer steps behind the weights in force."""
    version: Version = field(default_factory=lambda: Version(0, 0))
    """Weights version that the learner has published last."""
    compute: float = 0.0
    """Device-seconds of generation and training behind the weights in force; a rollback takes it back."""
    window: list[float] = field(default_factory=list)
    """Pass rates of the last training batches, newest last."""
    best: Score | None = None
    """Best held-out evaluation on this lineage."""
    forks: dict[int, int] = field(default_factory=dict)
    """Branch -> step at which it began."""

    @property
    def branch(self) -> int:
        return self.version.branch

    def dump(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "step": self.step,
            "version": list(self.version),
            "compute": self.compute,
            "window": self.window,
            "best": None if self.best is None else [self.best.step, self.best.pass_ratio, self.best.prompts],
            "forks": [[branch, start] for branch, start in self.forks.items()],
        }

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "RunState":
        """Inverse of `dump`."""
        return cls(
            step=data["step"],
            version=Version(*data["version"]),
            compute=data["compute"],
            window=list(data["window"]),
            best=Score(*data["best"]) if data["best"] else None,
            forks=dict(data["forks"]),
        )
