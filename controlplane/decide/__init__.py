"""Policy x snapshot x what happened before -> decision. Pure: replaying the snapshots gives the same decisions."""

from controlplane.decide.action import unsupported
from controlplane.decide.decision import Change, Decision, Kind, Purpose
from controlplane.decide.evaluator import Evaluator
from controlplane.decide.judgement import ForecastView, Judgement
from controlplane.decide.rules import STALE, decide, episodes
from controlplane.decide.standing import Standing

__all__ = [
    "STALE",
    "Change",
    "Decision",
    "Evaluator",
    "ForecastView",
    "Judgement",
    "Kind",
    "Purpose",
    "Standing",
    "decide",
    "episodes",
    "unsupported",
]
