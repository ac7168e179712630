"""What one learner rank has to say against a directive: the part of the vote that nobody else can answer for it."""

from pathlib import Path

from controlplane.agent import Directive
from controlplane.contract.documents import Target
from trainer.checkpoint.store import manifest_of
from trainer.recipe import Recipe

MEMORY = Path("/proc/meminfo")


def objection(directive: Directive, recipe: Recipe, checkpoints: Path, state_bytes: int) -> str:
    """Why this rank cannot follow, in one sentence; empty when it can.

    Args:
        recipe: the rank's own copy, with the guard rails that no controller can loosen.
        checkpoints: the run's directory of checkpoints, as this rank sees it.
        state_bytes: what the parts of the state take in host memory, where a rollback puts them first, for all ranks on
            this machine.
    """
    rails = recipe.rails()
    for values in (directive.values, *directive.arms.values()):
        for name, value in values.items():
            if rails.inside(name, value) != value:
                return f"{name} = {value:g} is not inside the guard rails"
    if directive.target is None:
        return ""
    return _unreadable(directive.target, checkpoints) or _no_room(state_bytes)


def _unreadable(target: Target, checkpoints: Path) -> str:
    """Whether every file is there in its full size, seen from here; its content is compared when it is staged."""
    for path in checkpoints.glob(f"step-{target.step:06d}-b*"):
        manifest = manifest_of(path)
        if manifest is None or manifest["digest"] != target.digest:
            continue
        for name in manifest["files"]:
            try:
                with (path / name).open("rb"):
                    pass
            except OSError as error:
                return f"{path.name}/{name} cannot be read here: {error.strerror}"
        return ""
    return f"the checkpoint of step {target.step} with digest {target.digest[:12]} is not in {checkpoints} here"


def _no_room(needed: int) -> str:
    try:
        lines = MEMORY.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return ""  # not Linux: nobody knows
    if free >= needed:
        return ""
    return f"a rollback needs {needed / 2**30:.1f} GiB of host memory here, {free / 2**30:.1f} GiB are free"
