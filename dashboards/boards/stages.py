"""Stages: the plan of a project as a table - stage, activity, target, where it stands, what is missing.

Which runs belong to which stage is a variable for each stage, so a project that names its runs `stage1-...` only has to set a pattern once.
"""

from dataclasses import dataclass

from dashboards.frame import Board
from dashboards.layout import Row
from dashboards.panel import BAD, GOOD, LINES, NEUTRAL, Json, Look, by_name, graph, table
from dashboards.query import Query, series
from dashboards.thresholds import Limits


@dataclass(frozen=True)
class Stage:
    """One stage of the plan. `target` is a held-out pass rate."""

    number: int
    activity: str
    target: float

    @property
    def variable(self) -> str:
        """Name of the variable that holds the pattern of its runs."""
        return f"stage{self.number}"


STAGES = (
    Stage(1, "test the base algorithm", 0.60),
    Stage(2, "test the ScaleRL components", 0.75),
    Stage(3, "optimise", 0.85),
    Stage(4, "train at scale", 0.90),
)
"""The project plan that this product was asked for with."""


def stages(limits: Limits) -> Board:
    """How far is the project?"""
    rows = [
        Row("How far is the project?", [(_table(), 24, 7)]),
        Row("How did it get there?", [(_history(), 24, 11)]),
    ]
    return Board(
        "stages", "RL project: stages", "The plan: stage, activity, target, current value and the gap between them.", rows,
        several=True, variables=[_pattern(stage) for stage in STAGES],
    )  # fmt: skip


def _pattern(stage: Stage) -> Json:
    made: Json = {
        "type": "textbox",
        "name": stage.variable,
        "label": f"Runs of stage {stage.number}",
        "query": ".+",
        "hide": 0,
    }
    return made | {
        "description": "Regular expression of run names.",
        "current": {"selected": True, "text": ".+", "value": ".+"},
        "options": [{"selected": True, "text": ".+", "value": ".+"}],
    }


def _current(stage: Stage) -> str:
    """Newest held-out pass rate of the best run of a stage, kept after it has ended."""
    return f"max(last_over_time({series('rl_eval_pass_ratio', _where(stage))}[$__range]))"


def _named(expr: str, stage: Stage) -> str:
    """The same value with stage and activity as labels."""
    numbered = f'label_replace({expr}, "stage", "{stage.number}", "", "")'
    return f'label_replace(label_replace({numbered}, "activity", "{stage.activity}", "", ""), "metric", "held-out pass rate", "", "")'


def _table() -> Json:
    target = " or ".join(_named(f"vector({stage.target:g})", stage) for stage in STAGES)
    current = " or ".join(_named(_current(stage), stage) for stage in STAGES)
    # Percentage points that are missing; none once the target is reached.
    gap = " or ".join(_named(f"clamp_min({stage.target:g} - {_current(stage)}, 0)", stage) for stage in STAGES)
    judged = by_name("Gap", unit="percentunit", decimals=1)
    judged["properties"] += [
        {"id": "color", "value": {"mode": "thresholds"}},
        {"id": "thresholds", "value": {"mode": "absolute", "steps": [{"color": NEUTRAL, "value": None}, {"color": GOOD, "value": 0}, {"color": BAD, "value": 1e-9}]}},
        {"id": "mappings", "value": [{"type": "value", "options": {"0": {"text": "reached", "color": GOOD, "index": 0}}}]},
        {"id": "custom.cellOptions", "value": {"type": "color-text"}},
    ]  # fmt: skip
    bar = by_name("Current", unit="percentunit", decimals=1, min=0, max=1)
    bar["properties"] += [
        {"id": "custom.cellOptions", "value": {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}},
        {"id": "color", "value": {"mode": "fixed", "fixedColor": LINES[0]}},
    ]
    return table(
        "Stages",
        "Each stage of the plan: what is done in it, the pass rate it must reach, the newest evaluation of the best of its runs in the time shown, and "
        "the percentage points that are missing. Which runs belong to a stage is set at the top of the page.",
        Query(target, ref="T", table=True), Query(current, ref="C", table=True), Query(gap, ref="G", table=True),
        columns=[
            ("stage", "Stage"), ("activity", "Activity"), ("metric", "Metric"), ("Value #T", "Target"), ("Value #C", "Current"), ("Value #G", "Gap"),
        ],
        overrides=[by_name("Target", unit="percentunit", decimals=0), bar, judged, by_name("Stage", custom__width=80)],
        sort=("Stage", False), no_data="no evaluation yet",
    )  # fmt: skip


def _history() -> Json:
    best = [
        Query(f"max({series('rl_eval_pass_ratio', _where(stage))})", f"stage {stage.number}: {stage.activity}") for stage in STAGES
    ]  # fmt: skip
    targets = [Query(f"vector({stage.target:g})", f"target {stage.number}") for stage in STAGES]
    return graph(
        "Best held-out pass rate of each stage", "The best run of each stage at each moment, and the four targets as dashed lines.",
        *best, *targets, unit="percentunit", low=0, high=1, steps=True,
        looks=[Look("target .*", NEUTRAL, width=1, dashed=True)] + [Look(f"stage {s.number}.*", LINES[i], width=3) for i, s in enumerate(STAGES)],
        no_data="no evaluation yet",
    )  # fmt: skip


def _where(stage: Stage) -> str:
    return f'job=~"$job",run=~"${{{stage.variable}}}"'
