"""Verdicts: slow ones beside generation, failing ones never for ever; the length penalty; what a request carries."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from controlplane.contract.documents import Phase
from controlplane.contract.rundir import RunDir, read_lines
from tests.trainer import rig
from tests.trainer.conftest import Script
from trainer.recipe import Recipe
from trainer.rollout.admission import Phases, Pipeline
from trainer.rollout.collector import TRIES, Collector
from trainer.rollout.curriculum import Curriculum
from trainer.rollout.penalty import length_penalty, penalised
from trainer.settings import LengthPenalty
from trainer.stopwatch import Stopwatch
from trainer.types import Prompt, ScoredGroup, Verdict, Version

TUNABLES = {"max_staleness": 2.0, "prompts_per_step": 3.0, "temperature": 1.0, "max_new_tokens": 8.0}
NOW = Version(0, 0)


def collector(task: rig.Parity, watch: Stopwatch | None = None, penalty: LengthPenalty | None = None) -> Collector:
    generator = rig.Typist(6)
    return Collector(
        generator,
        Curriculum(rig.PROMPTS, 0, 2.0, 1),
        task,
        rig.Decoder(),
        watch or Stopwatch(),
        seed=0,
        samples=rig.SAMPLES,
        admission=Pipeline(),
        penalty=penalty or LengthPenalty(),
    )


def batch(collector: Collector, tunables: dict[str, float] = TUNABLES) -> list[ScoredGroup]:
    for _ in range(10_000):
        taken = collector.turn(NOW, tunables)
        if taken:
            collector.buffer.release()
            return list(taken)
    raise AssertionError("no batch")


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [
        (1, 0.0),
        (12_288, 0.0),  # L_max - L_cache: (14336 - 12288) / 2048 - 1 = 0
        (12_800, -0.25),  # (14336 - 12800) / 2048 - 1 = -0.25
        (13_312, -0.5),
        (14_336, -1.0),
        (20_000, -1.0),
    ],
)
def test_the_length_penalty_is_that_of_the_paper(tokens: int, penalty: float) -> None:
    assert length_penalty(tokens, 1.0, LengthPenalty()) == penalty
    assert length_penalty(tokens, 0.5, LengthPenalty()) == 0.5 * penalty


def test_only_right_answers_are_charged_and_none_changes_sides() -> None:
    shape = LengthPenalty(longest=10, cache=4)
    assert penalised(Verdict(1.0, True), 8, 1.0, shape) == Verdict(0.5, True)
    assert penalised(Verdict(-1.0, False), 8, 1.0, shape) == Verdict(-1.0, False)
    assert penalised(Verdict(1.0, True), 10, 3.0, shape) == Verdict(-2.0, True)


def test_the_penalty_factor_is_the_one_in_force_at_the_request() -> None:
    shape = LengthPenalty(longest=1, cache=1)  # every completion is too long
    one = collector(rig.Parity(), penalty=shape)
    one.turn(NOW, {**TUNABLES, "length_penalty": 0.25})
    rewards = {r for scored in batch(one, {**TUNABLES, "length_penalty": 0.75}) for r in scored.rewards}
    assert rewards <= {-1.0, 0.75, 0.25}
    assert 0.75 in rewards  # the first requests: 1 - 0.25


def test_without_a_thinking_budget_among_the_tunables_nothing_is_ever_interrupted() -> None:
    without, given = collector(rig.Parity()), collector(rig.Parity())
    budgets = [
        {scored.group.request.sampling.thinking_budget for scored in batch(one, tunables)}
        for one, tunables in ((without, TUNABLES), (given, {**TUNABLES, "thinking_budget": 5.0}))
    ]
    assert budgets == [{0}, {5}]


def test_a_slow_verifier_does_not_stop_generation_and_close_joins_its_threads() -> None:
    gate = threading.Event()

    def wait(*_: Any) -> None:
        assert gate.wait(30)

    before = threading.active_count()
    watch = Stopwatch()
    one = collector(rig.Parity(workers=2, fails=wait), watch)
    phases = set()
    for _ in range(30):
        assert not one.turn(NOW, TUNABLES)
        phases.add(watch.phase)
        if not one.inflight:
            break
    assert one.buffer.counts(NOW, 2, 3)["inflight"] == 9  # all were generated, none is verified
    assert one.inflight == 0
    one.turn(NOW, TUNABLES)
    assert watch.phase is Phase.verifying  # nothing else to do: it waits for verdicts
    assert Phase.generating in phases
    gate.set()
    items = [scored.item for scored in batch(one)]
    assert items == sorted(items)
    one.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("staleness", [{"mode": "pipeline", "max_staleness": 2}, {"mode": "ppo_off_policy"}])
def test_threads_do_not_change_a_run_in_phases_and_lose_nothing_in_either_mode(
    tmp_path: Path, staleness: dict[str, Any]
) -> None:
    recipe = rig.recipe(staleness=staleness, batch={"prompts_per_step": 3})

    def losses(root: Path, workers: int) -> list[Any]:
        script = Script()
        loop = rig.assemble(root, recipe, script, rig.Parity(workers))
        assert loop.run() == "end"
        assert int(loop.session.learner.seen.max()) == 1  # type: ignore[attr-defined]
        return [report.loss for report in script.steps]

    inline, threaded = losses(tmp_path / "inline", 0), losses(tmp_path / "threads", 2)
    if staleness["mode"] == "ppo_off_policy":
        assert inline == threaded  # a phase waits for all of its groups, so that threads cannot reorder them
    assert len(inline) == len(threaded) == recipe.steps


class Broken:
    """Raises for one prompt, `times` times (for each of its completions)."""

    def __init__(self, ordinal: int, times: int) -> None:
        self.ordinal, self.left, self.calls = ordinal, times * rig.SAMPLES, 0

    def __call__(self, prompt: Prompt, _: str) -> None:
        if prompt.ordinal == self.ordinal:
            self.calls += 1
            if self.left:
                self.left -= 1
                raise RuntimeError("sandbox is gone")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_verifier_that_fails_gives_the_prompt_back_and_it_is_trained_once(tmp_path: Path, workers: int) -> None:
    script, broken = Script(), Broken(4, times=TRIES - 1)
    recipe = rig.recipe(batch={"prompts_per_step": 3})
    loop = rig.assemble(tmp_path / "run", recipe, script, rig.Parity(workers, broken))
    assert loop.run() == "end"
    dropped: Counter[str] = Counter()
    for report in script.steps:
        dropped.update(report.rollouts.dropped_groups)
    assert dropped["error"] == TRIES - 1
    assert sum(report.rollouts.errored for report in script.steps) == (TRIES - 1) * rig.SAMPLES
    assert sum(report.rollouts.discarded_tokens for report in script.steps) > 0
    items = [ordinal for line in read_lines(RunDir(tmp_path / "run").ledger) for ordinal in line["ordinals"]]
    assert items[:10].count(4) <= 1
    assert int(loop.session.learner.seen.max()) == 1  # type: ignore[attr-defined]


def test_a_prompt_whose_verifier_always_fails_counts_as_failed_and_does_not_come_back() -> None:
    broken = Broken(4, times=10**6)
    one = collector(rig.Parity(fails=broken))
    seen: dict[int, ScoredGroup] = {}
    for _ in range(6):  # it comes late, behind prompts of the next epoch
        seen |= {scored.item.ordinal: scored for scored in batch(one) if scored.item.epoch == 0}
    assert seen[4].rewards == (-1.0,) * rig.SAMPLES
    assert not any(verdict.passed for verdict in seen[4].verdicts)
    assert broken.calls == TRIES * rig.SAMPLES
    assert one.dropped["error"] == TRIES - 1


def test_a_flush_forgets_verdicts_that_are_still_being_made() -> None:
    gate = threading.Event()

    def wait(*_: Any) -> None:
        assert gate.wait(30)

    one = collector(rig.Parity(workers=1, fails=wait))
    while one.inflight or not one.buffer.occupied:
        one.turn(NOW, TUNABLES)
    lost = one.flush()
    assert lost == 9
    assert one.dropped["rollback"] == 9
    assert one.discarded_tokens > 0
    gate.set()
    items = [scored.item for scored in batch(one)]
    assert len(set(items)) == 3
    one.close()


@pytest.mark.parametrize(
    ("mode", "k", "most"),
    [("pipeline", 3, 3), ("ppo_off_policy", 3, 2), ("ppo_off_policy", 1, 0), ("ppo_off_policy", 0, 0)],
)
def test_the_modes_are_one_key_apart_and_each_keeps_its_bound(tmp_path: Path, mode: str, k: int, most: int) -> None:
    script = Script()
    recipe: Recipe = rig.recipe(staleness={"mode": mode, "max_staleness": k}, batch={"prompts_per_step": 2})
    loop = rig.assemble(tmp_path / "run", recipe, script)
    assert isinstance(loop._collector.buffer._admission, Pipeline if mode == "pipeline" else Phases)
    assert loop.run() == "end"
    staleness = [max(report.rollouts.staleness) for report in script.steps]
    assert max(staleness) <= most
    if mode == "ppo_off_policy":
        updates = max(1, k)
        assert staleness == [step % updates for step in range(recipe.steps)]  # each phase counts up from 0
        assert all(report.inflight == 0 for report in script.steps)  # nothing is generated while it is trained
        assert all(set(report.rollouts.staleness) == {report.step - 1 - (report.step - 1) // updates * updates}
                   for report in script.steps)  # fmt: skip


def test_tunables_that_change_at_any_step_never_stop_a_run(tmp_path: Path) -> None:
    from controlplane.agent import BoundaryState, Directive

    for mode in ("pipeline", "ppo_off_policy"):
        changes: dict[int, dict[str, float]] = {
            2: {"prompts_per_step": 5.0},
            3: {"max_staleness": 0.0},
            5: {"prompts_per_step": 1.0, "max_staleness": 4.0},
            8: {"prompts_per_step": 4.0},
            9: {"prompts_per_step": 2.0, "max_staleness": 1.0},
        }

        def ask(state: BoundaryState, changes: dict[int, dict[str, float]] = changes) -> Directive | None:
            return Directive(f"d{state.step}", 1, changes[state.step]) if state.step in changes else None

        script = Script(ask)
        loop = rig.assemble(tmp_path / mode, rig.recipe(staleness={"mode": mode, "max_staleness": 3}), script)
        assert loop.run() == "end"
        for report in script.steps:
            assert max(report.rollouts.staleness) <= report.tunables["max_staleness"]
            assert len(report.rollouts.rewards) == report.tunables["prompts_per_step"] * rig.SAMPLES
        assert int(loop.session.learner.seen.max()) == 1  # type: ignore[attr-defined]
