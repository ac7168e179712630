"""What was adopted in a run, as a part of a recipe that a later run follows from the start. Pure."""

from collections.abc import Iterable

import yaml

from controlplane.tune.trials import Trial


def schedule(trials: Iterable[Trial], reverted: Iterable[str] = ()) -> str:
    """YAML for the key `schedule` of a recipe: the value of each adopted arm, from the step after its snapshot.

    An adopted arm is the run's own past from its first step on, so that is where a later run changes. `reverted` are probes whose
    adoption was taken back.
    """
    gone = set(reverted)
    adopted = sorted((t for t in trials if t.outcome == "adopt" and t.probe_id not in gone), key=lambda t: t.from_step)
    changes = [{"step": trial.from_step + 1, "set": {trial.tunable: trial.value}} for trial in adopted]
    return yaml.safe_dump({"schedule": changes}, sort_keys=False)
