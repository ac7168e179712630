"""What all parts of a policy share: strictness, the action families, the autonomy ladder."""

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, WithJsonSchema


class Part(BaseModel):
    """Frozen, and no key that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Family(StrEnum):
    """Kinds of action that a user may trust the controller with, one by one."""

    rollback = "rollback"
    lr = "lr"
    clip = "clip"
    batch = "batch"
    sampling = "sampling"
    length = "length"
    probe = "probe"


FAMILY_OF: dict[str, Family] = {
    "lr_scale": Family.lr,
    "ratio_max": Family.clip,
    "clip_low": Family.clip,
    "clip_high": Family.clip,
    "prompts_per_step": Family.batch,
    "max_staleness": Family.sampling,
    "temperature": Family.sampling,
    "max_new_tokens": Family.length,
    "thinking_budget": Family.length,
    "length_penalty": Family.length,
}
"""The family that a change of each tunable belongs to."""


class Autonomy(IntEnum):
    """How far the controller may go: write down, tell, or do."""

    observe = 0
    advise = 1
    act = 2


def _level(value: object) -> Autonomy:
    try:
        return value if isinstance(value, Autonomy) else Autonomy[str(value)]
    except KeyError:
        raise ValueError(f"must be one of {', '.join(Autonomy.__members__)}") from None


Level = Annotated[
    Autonomy,
    PlainValidator(_level),
    PlainSerializer(lambda level: level.name),
    WithJsonSchema({"enum": list(Autonomy.__members__), "type": "string"}),
]
