"""Two real processes over gloo: both apply a decision at the same step, or neither does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

RANK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from controlplane.agent import BoundaryState, Follower
from controlplane.contract.documents import AckState, Action
from controlplane.contract.rundir import RunDir
from tests.agent.house import RAILS, MemoryMailbox, desired, make_agent, send
from trainer.ranks import TorchRanks

dist.init_process_group("gloo")
rank, rundir, mailbox = dist.get_rank(), RunDir(Path(sys.argv[1])), MemoryMailbox()
refuse = lambda directive: "no" if directive.decision_id == "unwanted" and rank == 1 else ""
if rank == 0:
    agent = make_agent(rundir, mailbox, ranks=TorchRanks(), check=refuse)
else:
    agent = Follower(TorchRanks(), RAILS, tuple(Action), refuse)
values, seen = agent.values, []
for step in range(6):
    if rank == 0 and step == 2:
        send(mailbox, rundir, desired(agent, "unwanted", scale=0.5))
    if rank == 0 and step == 4:
        send(mailbox, rundir, desired(agent, "wanted", generation=2, scale=0.5))
    directive = agent.boundary(BoundaryState(step, 0, 0.0, dict(values)))
    if directive:
        values |= directive.values
        agent.acknowledge(directive, AckState.applied, step, dict(values))
    seen.append([step, directive.decision_id if directive else "", values["lr_scale"]])
ack = mailbox.observed.last_ack.state if mailbox.observed else ""
print(json.dumps({"seen": seen, "ack": ack}))
dist.destroy_process_group()
"""


def test_two_processes_apply_a_decision_at_the_same_step_or_not_at_all(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    base = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    base["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env={**base, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    before, after = [[step, "", 1.0] for step in range(4)], [[4, "wanted", 0.5], [5, "", 0.5]]
    assert outputs[0]["seen"] == outputs[1]["seen"] == before + after
    assert outputs[0]["ack"] == "applied"
