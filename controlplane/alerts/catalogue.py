"""All alerts, in their groups."""

from controlplane.alerts.learning import learning
from controlplane.alerts.limits import Limits
from controlplane.alerts.model import Alert
from controlplane.alerts.rollout import rollout
from controlplane.alerts.trainer import trainer
from controlplane.alerts.watching import watching


def groups(limits: Limits) -> dict[str, tuple[Alert, ...]]:
    """Group name -> its alerts."""
    return {
        "rl-learning": learning(limits),
        "rl-rollout": rollout(limits),
        "rl-trainer": trainer(limits),
        "rl-watching": watching(limits),
    }


def alerts(limits: Limits) -> tuple[Alert, ...]:
    """Every alert."""
    return tuple(alert for group in groups(limits).values() for alert in group)
