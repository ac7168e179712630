"""A small foreign trainer: counts, saves, cannot restore in its process, has a resume flag of its own. Run as a program.

Its weights are a number: the sum of `lr_scale` over its steps, so that every repeated or lost step shows.
"""

import argparse
import json
import os
import time
from pathlib import Path

from controlplane.agent import Agent, BoundaryState, GuardRails
from controlplane.contract.documents import AckState, Action, CheckpointState, Health, Phase
from controlplane.contract.rundir import RunDir, RunInfo, append_line

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--crash-at", type=int, default=-1)
parser.add_argument("--uid", default="foreign-1")
parser.add_argument("--resume-from", default="")
options = parser.parse_args()
rundir = RunDir(options.run)
saves = options.run / "saves"
saves.mkdir(parents=True, exist_ok=True)

if not rundir.info.exists():
    info = RunInfo(
        run_uid=options.uid,
        name="foreign",
        created_at=0.0,
        planned_steps=options.steps,
        config_hash="",
        framework="foreign",
        algorithm="",
        model="",
    )
    rundir.info.write_text(info.model_dump_json())
state = {"step": 0, "weights": 0.0}
if options.resume_from:
    state = json.loads(Path(options.resume_from).read_text())
elif found := sorted(saves.glob("*.json")):
    state = json.loads(found[-1].read_text())
actions = (Action.none, Action.rollback, Action.stop)
rails = GuardRails(cooldown_steps=0)
agent = Agent(
    rundir, rundir.read_info(), {"lr_scale": 1.0}, rails, actions, resumed_at=state["step"], poll_seconds=0.02
)
values, crash_marker = agent.values, options.run / "crashed"
if options.resume_from:
    for save in saves.glob("*.json"):  # what was saved after it belongs to the branch that was left
        if int(save.stem) > state["step"]:
            save.unlink()
append_line(options.run / "trainer.jsonl", {"started_at": state["step"], "pid": os.getpid(), "values": values})


def boundary(phase: Phase = Phase.training) -> None:
    checkpoints = tuple(
        CheckpointState(step=int(save.stem), branch=agent.rolled_back, digest=save.stem, health=Health.good)
        for save in sorted(saves.glob("*.json"))
    )
    where = BoundaryState(state["step"], agent.rolled_back, float(state["step"]), dict(values), checkpoints, phase)
    directive = agent.boundary(where)
    if directive is None:
        return
    if directive.action is Action.rollback and directive.target is not None:
        raise SystemExit(agent.leave(directive, str(saves / f"{directive.target.step:04d}.json")))
    values.update(directive.values)
    agent.acknowledge(directive, AckState.applied, state["step"], dict(values))


boundary()
while state["step"] < options.steps:
    time.sleep(0.03)
    state = {"step": state["step"] + 1, "weights": state["weights"] + values["lr_scale"]}
    if state["step"] % 5 == 0:
        (saves / f"{state['step']:04d}.json").write_text(json.dumps(state))
    append_line(options.run / "trainer.jsonl", state)
    if state["step"] == options.crash_at and not crash_marker.exists():
        crash_marker.touch()
        os.abort()
    boundary()
agent.close()
