"""What a person answered to a decision that waits for one. How it travels is the transport's business; here is what it says."""

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
