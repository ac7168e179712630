"""Why a probe begins, and what it is about. Pure."""

from dataclasses import dataclass

from controlplane.contract.approvals import Order
from controlplane.decide import Judgement
from controlplane.detect import Outcome as Alarm
from controlplane.policy.tuning import Tuning


@dataclass(frozen=True)
class Trigger:
    """Why, and what to try. `unstable`: downwards alone."""

    reason: str
    tunables: tuple[str, ...]
    unstable: bool = False
    by: str = ""
    order_id: str = ""

    @classmethod
    def of(cls, order: Order, tuning: Tuning) -> "Trigger":
        """A person's request."""
        words = f"{order.by} asked for it" + (f": {order.reason}" if order.reason else "")
        tunables = (order.tunable,) if order.tunable else tuple(tuning.space)
        return cls(words, tunables, by=order.by, order_id=order.order_id)

    @classmethod
    def found(cls, judgement: Judgement, tuning: Tuning) -> "Trigger | None":
        """An alarm that a tunable can answer, or a target that will probably be missed; None without either."""
        for name, tunables in tuning.on_alarm.items():
            if name in judgement.findings and judgement.findings[name].outcome is Alarm.breach:
                return cls(f"{name} is in alarm", tunables, unstable=True)
        forecast = judgement.forecast
        if forecast is None or forecast.refused or forecast.target_probability is None:
            return None
        missed = 1 - forecast.target_probability
        if missed < tuning.miss_probability:
            return None
        return cls(f"the target of {forecast.target:g} is missed with probability {missed:.2f}", tuple(tuning.space))
