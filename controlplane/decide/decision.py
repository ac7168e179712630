"""A decision: what is to be done about one look at the run, and why. "Nothing" is a decision too."""

import hashlib
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from controlplane.contract.documents import Action, Lease, Probe, Ruling, Setting, Target


class Kind(StrEnum):
    """nothing: all is well. hold: something is missing or in the way. observe and advise: a rule holds, but autonomy goes no
    further. waiting: a person has to approve. dropped: denied, or nobody answered. act: published to the trainer. page: a
    person is needed. verdict: what an earlier action was worth."""

    nothing = "nothing"
    hold = "hold"
    observe = "observe"
    advise = "advise"
    waiting = "waiting"
    dropped = "dropped"
    act = "act"
    page = "page"
    verdict = "verdict"


class Purpose(StrEnum):
    """Why an action is taken. answer: a rule holds. revert: it takes back a change that did not help. recover: a step back
    to the values before, after quiet steps. order: a person asked for it. probe: an arm begins or ends, the run itself stays
    as it is. adopt: a probe has proved that other values are better."""

    answer = "answer"
    revert = "revert"
    recover = "recover"
    order = "order"
    probe = "probe"
    adopt = "adopt"


class Change(BaseModel):
    """What the trainer is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action = Action.none
    target: Target | None = None
    set: dict[str, Setting] = {}
    probe: Probe | Ruling | None = None

    def sentence(self) -> str:
        """For people: "roll back to step 100 and set lr_scale x 0.5"."""
        parts = []
        if self.target is not None:
            parts.append(f"roll back to step {self.target.step}")
        elif isinstance(self.probe, Probe):
            parts.append(f"probe {', '.join(sorted(self.probe.arms))} for {self.probe.steps} steps each")
        elif self.probe is not None:
            parts.append(
                f"end probe {self.probe.probe_id}" if self.probe.end else f"rule on probe {self.probe.probe_id}"
            )
        elif self.action is not Action.none:
            parts.append(self.action.value)
        for name, setting in self.set.items():
            parts.append(
                f"set {name} to {setting.value:g}" if setting.value is not None else f"set {name} x {setting.scale:g}"
            )
        return " and ".join(parts) or "nothing"


class Decision(BaseModel):
    """One decision. `decision_id` is set when it is addressed to the trainer or to a person who must approve it, and is the
    key of idempotency."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    kind: Kind
    reason: str
    """One sentence that a person on call understands."""
    step: int | None = None
    branch: int = 0
    rule: str | None = None
    purpose: Purpose = Purpose.answer
    change: Change | None = None
    before: dict[str, float] = {}
    """Values in force of the tunables that the change names."""
    lease: Lease | None = None
    """Given with a temporary change: past its end the trainer takes the values back by itself."""
    onset: int | None = None
    """Step at which the trouble is thought to have begun."""
    decision_id: str | None = None
    generation: int | None = None
    base_generation: int | None = None
    expires_at_step: int | None = None
    evidence: dict[str, float] = {}
    forked_from: int | None = None
    """Of an adoption: the step at which the new branch begins."""
    helped: bool | None = None
    """Only of a verdict."""
    approved_by: str = ""
    """Who approved it, where that was needed."""
    also: tuple[str, ...] = ()
    """Other rules that held in this look, each with why it was passed over."""


def decision_id(run_uid: str, generation: int, rule: str, branch: int, step: int) -> str:
    """Id of a decision, the same each time it is made again from the journal."""
    return hashlib.sha256(f"{run_uid}/{generation}/{rule}/{branch}/{step}".encode()).hexdigest()[:16]
