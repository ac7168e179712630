"""What the rooms of the step machine share: the parts that hold state, and what is in force. One per process."""

from dataclasses import dataclass, field

from trainer.learn import Learner
from trainer.rollout.collector import Collector
from trainer.rollout.curriculum import Curriculum
from trainer.state import RunState


@dataclass
class Session:
    """Between two steps, `state`, learner and curriculum together are what a checkpoint holds."""

    learner: Learner
    curriculum: Curriculum
    collector: Collector
    tunables: dict[str, float]
    """In force; changed at a control point alone."""
    state: RunState = field(default_factory=RunState)
    poisoned: bool = False
    """The last step was not finite: what stands now is not checkpointed."""
    stopping: str = ""
    """Why the run was told to stop; empty while it was not."""
