"""Arms `none`, `inline`, `spare`, `switchback`, `auto` and `optuna` of the comparison: one real run in this process.

The run, its agent, its controller and its tuner are the real ones; the controller looks at every step boundary, so that a figure does not hang
on who gets the processor. Spare arms are trained by the helper's own code in a thread that may take `SPARE` steps for each step of
the run: as many spare devices as a population of four has.
"""

import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

from bench.tuning.lab import EVERY, SPACE, STEP, Costs, counted, held_out, made, recipe_of, space_of
from controlplane.agent import Agent, BoundaryState, Directive
from controlplane.contract.approvals import Order
from controlplane.contract.rundir import RunDir, read_lines
from controlplane.journal import Journal
from controlplane.loop import Controller
from controlplane.policy import parse
from controlplane.post import say
from controlplane.sources import Sample
from controlplane.sources.exposition import parse as parse_metrics
from controlplane.tune.command import tuner_of
from trainer.build import identify
from trainer.control import ACTIONS
from trainer.loop import Loop
from trainer.probe import helper
from trainer.probe.record import Record
from trainer.recipe import Recipe

POLICY = Path(__file__).parent / "policy.yaml"
AUTO = "auto"
AIM, OFTEN = 0.7, 8
"""Pass rate that the run of arm `auto` should reach, and steps between its evaluations: a forecast needs eight of them."""
SPARE = 3
FIRST, AGAIN, LONGEST = 12, 64, 60
"""Steps at which a person asks for a probe: once the warm-up of the learning rate is over, and so many steps later, each time; while so
many are left."""


class InStep:
    """A helper whose arms take `SPARE` steps whenever the run asks how it does."""

    def __init__(self, folder: Path, start: str, seed: int, costs: Costs) -> None:
        self._folder, self._start, self._seed, self._costs = folder, start, seed, costs
        self._permits, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._problem = False, ""
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        try:
            order = helper.Order.read(self._folder)
            loop = made(self._folder, recipe_of(self._start, self._seed), tunables=dict(order.tunables))
            counted(loop, self._count)
            step = loop.machine.stepper.step

            def permitted() -> Any:
                if self._over:
                    return None
                self._permits.acquire()
                try:
                    return None if self._over else step()
                finally:
                    self._done.release()

            loop.machine.stepper.step = permitted  # type: ignore[method-assign]
            snapshot = torch.load(self._folder / "snapshot.pt", weights_only=False)
            helper.train(loop.machine, order, snapshot, Record(self._folder.parent / order.record))
            loop.close()
        except Exception as error:
            self._problem = f"the spare process broke: {error}"
        finally:
            self._over = True
            self._done.release()

    def _count(self, completions: int) -> None:
        self._costs.spare += completions

    def failed(self) -> str | None:
        for _ in range(SPARE):
            if self._over:
                self._thread.join()
                return self._problem
            self._permits.release()
            self._done.acquire()
        return None

    def stop(self) -> None:
        self._over = True
        self._permits.release()
        self._thread.join()


def policy_of(arm: str) -> str:
    """The policy of an arm: a person asks for probes, or with `auto` the forecast alone begins them."""
    policy = yaml.safe_load(POLICY.read_text())
    if arm == AUTO:
        policy["autonomy"]["probe"] = "act"
        policy["forecast"]["target"] = AIM
        policy["tuning"]["max_probes"] = 2
    else:
        policy["tuning"]["design"] = arm
    return yaml.safe_dump(policy, sort_keys=False)


class House:
    """Agent and controller of a run; a control that looks at every boundary."""

    def __init__(self, root: Path, recipe: Recipe, arm: str, costs: Costs, budget: int) -> None:
        self.rundir, self.now, self.costs, self.budget = RunDir(root), 0.0, costs, budget
        text = policy_of(arm)
        root.mkdir(parents=True, exist_ok=True)
        info = identify(recipe, self.rundir)
        self.agent = Agent(
            self.rundir, info, recipe.tunables(), recipe.rails(), ACTIONS, port=None, poll_seconds=None, clock=self.time
        )
        policy = parse(text)
        self.controller = Controller(self.rundir, policy, text, self, Journal(self.rundir.journal), clock=self.time)
        tuner = tuner_of(self.rundir, policy)
        assert tuner is not None
        self.controller.advised_by(tuner)
        self.controller.attach()
        self.asked, self._asks = 0, arm != AUTO
        self.loop: Loop | None = None
        for name in ("step", "evaluation", "checkpoint", "acknowledge"):
            setattr(self, name, getattr(self.agent, name))

    def time(self) -> float:
        return self.now

    def read(self, names: Collection[str]) -> Sample:
        """The source of the controller: the agent's own page."""
        return Sample(self.now, parse_metrics(self.agent.store.text(), names))

    def boundary(self, state: BoundaryState) -> Directive | None:
        """A look of the controller between what the agent has now and what it has then."""
        assert self.loop is not None
        self.now += 1.0
        if self.costs.wall >= self.budget:
            self.loop.stop("the budget is spent")
            return None
        in_time = self.budget - self.costs.wall >= LONGEST * STEP
        if self._asks and not state.probe and in_time and state.step >= FIRST + self.asked * AGAIN:
            order = Order(order_id=f"bench-{self.asked}", action="probe", by="bench", at=self.now)
            self.asked += 1
            say(self.rundir, order)
        directive = self.agent.boundary(state)
        if directive is None:
            self.controller.tick()
            directive = self.agent.boundary(state)
        return directive

    def close(self) -> None:
        self.controller._journal.close()
        self.agent.close()


def run(root: Path, start: str, arm: str, seed: int, steps: int) -> tuple[Costs, dict[str, Any]]:
    """One run until its wall budget is spent."""
    costs, budget = Costs(), steps * STEP
    recipe = recipe_of(start, seed, steps if arm == AUTO else None)
    house = House(root, recipe, arm, costs, budget) if arm not in ("none", "optuna") else None
    loop = made(root, recipe, house)
    if house is not None:
        house.loop = loop
        loop._probing._launch = lambda folder: InStep(folder, start, seed, costs)
    live = Live(loop, seed, space_of(start)) if arm == "optuna" else None

    def add(completions: int) -> None:
        costs.wall += completions

    counted(loop, add)
    loop._stepper.publish()
    evaluated = -1
    while costs.wall < budget:
        here = loop.state.step
        if here % (OFTEN if arm == AUTO else EVERY) == 0 and here != evaluated:
            costs.curve.append((costs.wall, costs.total, here, held_out(loop, RunDir(root) if arm == AUTO else None)))
            evaluated = here
        if live is not None:
            live.before(here)
        loop._one_step()
        if live is not None:
            live.after(list(read_lines(RunDir(root).steps))[-1])
        loop._control_point()
    loop._probing.cancel("the run has ended")
    costs.curve.append((costs.wall, costs.total, loop.state.step, held_out(loop)))
    loop.close()
    extra: dict[str, Any] = {"tunables": {name: loop.tunables[name] for name in SPACE}}
    if house is not None:
        ends = [list(read_lines(path))[-1] for path in sorted(RunDir(root).probes.glob("*.jsonl"))]
        extra["probes"] = [[end["outcome"], end["reason"]] for end in ends if end["kind"] == "end"]
        house.close()
    return costs, extra


class Live:
    """Plain Optuna on the live run: each segment has the values that TPE suggests, its score is what the training pass rate gained; the
    best ones are kept once `EXPLORE` segments have been tried."""

    SEGMENT, EXPLORE = 10, 8

    def __init__(self, loop: Loop, seed: int, space: dict[str, tuple[float, float]]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._loop, self._space = loop, space
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._study.enqueue_trial({name: loop.tunables[name] for name in space})
        self._trial: optuna.Trial | None = None
        self._rates: list[float] = []

    def before(self, step: int) -> None:
        """The next segment begins where the last one has ended."""
        if step % self.SEGMENT:
            return
        if self._trial is not None:
            half = len(self._rates) // 2
            first, second = self._rates[:half], self._rates[half:]
            self._study.tell(self._trial, sum(second) / len(second) - sum(first) / len(first))
            self._trial, self._rates = None, []
        if len(self._study.trials) < self.EXPLORE:
            self._trial = self._study.ask()
            values = {name: self._trial.suggest_float(name, *bounds, log=True) for name, bounds in self._space.items()}
        else:
            values = self._study.best_params
        self._loop.tunables.update({n: float(round(v)) if n == "prompts_per_step" else v for n, v in values.items()})

    def after(self, line: dict[str, Any]) -> None:
        """A step has been taken."""
        self._rates.append(line["pass_ratio"])
