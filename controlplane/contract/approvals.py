"""What people say to a controller: an answer to a decision that waits for one, or an order of their own.

How it travels is the transport's business (`documents.Said`, signed); here is what it says.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Approval(BaseModel):
    """One answer. It names the decision, so an answer that comes late, twice or to another run changes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decision_id: str = Field(min_length=1)
    answer: Literal["approve", "deny"]
    by: str = Field(min_length=1, max_length=200)
    """Who answered, as the transport knows them; for the record."""
    at: float = Field(allow_inf_nan=False)
    """Unix seconds, for people; nothing is decided by it."""
    reason: str = Field(default="", max_length=2000)


class Order(BaseModel):
    """What a person asks of the trainer by name, past every rule; journaled and published like a decision.

    Values of tunables are not among it: they have a policy and a recipe. Nor is a rollback: it needs a reason and a limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order_id: str = Field(min_length=1, max_length=200)
    """Becomes the `decision_id` of the document that carries it out, so it happens at most once."""
    action: Literal["checkpoint", "pause", "resume", "stop", "probe"]
    tunable: str = ""
    """Of a probe: what to try; empty leaves it to the policy."""
    by: str = Field(min_length=1, max_length=200)
    at: float = Field(allow_inf_nan=False)
    """Unix seconds, for people; nothing is decided by it."""
    reason: str = Field(default="", max_length=2000)
