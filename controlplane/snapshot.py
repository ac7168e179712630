"""What the controller saw in one look at a run: metric samples, the observed document, and what could not be read.

A snapshot is the whole input of a decision. It is journaled before anything is decided from it, so that every decision
can be made again from the journal, bit for bit.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from controlplane.contract.approvals import Approval, Order
from controlplane.contract.documents import Observed, Probe, Ruling, Setting


class Wish(BaseModel):
    """What the tuner would have the run do next. A wish and no more: the decision, made from it and from everything else in the
    look, says whether it may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wish_id: str
    """The same each time this is wished for."""
    probe: Probe | Ruling | None = None
    """None: only tunables are set."""
    set: dict[str, Setting] = {}
    from_step: int | None = None
    """Of an adoption: the step at which all arms began."""
    order_id: str = ""
    """Of the order that asked for it."""
    asked_by: str = ""
    """The person who asked for it, if one did."""
    reason: str
    evidence: dict[str, float] = {}
    trials: tuple[dict[str, str | int | float | None], ...] = ()
    """Arms of a new probe as they stand in the study."""


class Snapshot(BaseModel):
    """One look. NaN means "the trainer had no value"; a missing series means "it was not exported"."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    at: float
    """Unix seconds of the look, by the controller's clock."""
    sampled_at: float | None
    """Unix seconds of the newest metric sample; None when no metrics could be read."""
    metrics: dict[str, float] = {}
    """Series id (see `series_id`) -> value."""
    observed: Observed | None = None
    signals: dict[str, float] = {}
    """Signal of the policy that has a query of its own -> its newest value; one without data is missing."""
    approvals: tuple[Approval, ...] = ()
    """Answers of people that are known in this look. They may stay in later looks: an answer counts once."""
    errors: tuple[str, ...] = ()
    """One sentence for each thing that could not be read."""
    orders: tuple[Order, ...] = ()
    """What people ask for, oldest first, and no decision has carried out or refused yet."""
    wish: Wish | None = None
    """What the tuner would have, if anything."""


def series_id(name: str, labels: Mapping[str, str]) -> str:
    """Canonical text of one series: `name{a="x",b="y"}`, labels sorted."""
    inner = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    return f"{name}{{{inner}}}" if inner else name


def total(metrics: Mapping[str, float], name: str) -> float | None:
    """Sum over all series of one metric name; None where there is none."""
    found = [value for key, value in metrics.items() if key.partition("{")[0] == name]
    return sum(found) if found else None
