"""`python -m tests.cluster.two_nodes RUN`: a run on a Ray of two nodes, one of which goes away at step 4 and another comes at step 10."""

import sys
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.cluster.runs import events, go, joined, listening, recipe, wait_for
from trainer.loop import Loop


def main(root: Path) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = nodes.add_node(num_cpus=1)

    def lose(loop: Loop) -> None:
        wait_for(lambda: listening(loop) and len(joined(root)) == 2)
        nodes.remove_node(second, allow_graceful=False)
        wait_for(lambda: listening(loop) and events(root, "generator_lost"))

    def gain(loop: Loop) -> None:
        assert len(joined(root)) == 2
        nodes.add_node(num_cpus=1)
        wait_for(lambda: listening(loop) and len(joined(root)) == 3)

    try:
        _, reason = go(root, recipe(steps=14), {4: lose, 10: gain}, nodes.address)
        print(reason)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
