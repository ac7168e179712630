"""How often something may fail within a while, and how long to wait before it is tried again. Pure."""

from dataclasses import dataclass

from trainer.cluster.settings import Restarts


@dataclass(frozen=True)
class Budget:
    """The failures of one thing; times in seconds of one clock."""

    spec: Restarts
    failures: tuple[float, ...] = ()

    def after_failure(self, now: float) -> "Budget":
        """One more failure; those before the window are forgotten."""
        return Budget(self.spec, (*self._recent(now), now))

    def spent(self, now: float) -> bool:
        """Too many to try again."""
        return len(self._recent(now)) > self.spec.limit

    def due(self) -> float:
        """When it may be tried again: doubling waits after the last failure."""
        if not self.failures:
            return 0.0
        doublings = min(len(self.failures) - 1, 30)
        return self.failures[-1] + min(self.spec.longest_wait, self.spec.first_wait * 2.0**doublings)

    def _recent(self, now: float) -> tuple[float, ...]:
        return tuple(at for at in self.failures if now - at <= self.spec.window_seconds)
