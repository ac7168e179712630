"""Why a probe begins, and what it is about. Pure."""

from controlplane.contract.approvals import Order
from controlplane.policy.tuning import Tuning


class Trigger:
    """Why, and what to try."""

    def __init__(
        self, reason: str, tunables: tuple[str, ...], unstable: bool = False, by: str = "", order_id: str = ""
    ) -> None:
        self.reason, self.tunables, self.unstable, self.by, self.order_id = reason, tunables, unstable, by, order_id

    @classmethod
    def of(cls, order: Order, tuning: Tuning) -> "Trigger":
        """A person's request."""
        words = f"{order.by} asked for it" + (f": {order.reason}" if order.reason else "")
        return cls(
            words, (order.tunable,) if order.tunable else tuple(tuning.space), by=order.by, order_id=order.order_id
        )
