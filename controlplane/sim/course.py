"""A course: what one simulated run would do if nobody touched it and nothing broke. Drawn from wide priors, by seed."""

import math
from dataclasses import dataclass, field

import numpy as np

from controlplane.sim.learner import Law
from controlplane.sim.noise import Levels


@dataclass(frozen=True)
class Course:
    """A run of `steps`, with everything about it that a fault does not change."""

    seed: int
    steps: int
    law: Law
    samples: int
    """Completions per prompt."""
    levels: Levels
    step_seconds: float
    eval_every: int
    checkpoint_every: int
    gen_length: float
    """Mean tokens at the start, and its growth in e-folds to the end."""
    gen_length_growth: float
    grad_norm: float
    grad_norm_growth: float
    entropy: float
    entropy_growth: float
    mismatch_kl: float
    truncated: float
    """Share truncated while all is well, and how much more at the very start."""
    truncated_early: float
    eval_prompts: int = 256
    eval_samples: int = 4
    warmup: int = field(default=20)
    """Steps until the learning rate is reached."""

    @classmethod
    def draw(cls, seed: int, steps: int = 2000) -> "Course":
        """A run as different from the others as real ones are."""
        rng = np.random.default_rng((seed, 1))
        start = float(rng.uniform(0.02, 0.5))
        end = float(rng.uniform(max(start + 0.1, 0.35), 0.97))
        prompts, samples = ((16, 8), (32, 8), (32, 16), (48, 16), (64, 16))[int(rng.integers(5))]
        middle = float(np.exp(rng.uniform(math.log(0.04), math.log(0.6)))) * steps
        return cls(
            seed=seed,
            steps=steps,
            law=Law(start, end, middle, float(rng.uniform(0.7, 2.5)), prompts),
            samples=samples,
            levels=Levels.draw(rng),
            step_seconds=float(np.exp(rng.uniform(math.log(20), math.log(300)))),
            eval_every=max(10, steps // 40),
            checkpoint_every=int(rng.choice((10, 20, 25, 50))),
            gen_length=float(np.exp(rng.uniform(math.log(100), math.log(4000)))),
            gen_length_growth=float(rng.uniform(-0.3, 1.0)),
            grad_norm=float(np.exp(rng.uniform(math.log(0.05), math.log(1.5)))),
            grad_norm_growth=float(rng.uniform(-1.2, 0.5)),
            entropy=float(np.exp(rng.uniform(math.log(0.15), math.log(1.0)))),
            entropy_growth=float(rng.uniform(-1.2, 0.4)),
            mismatch_kl=float(np.exp(rng.uniform(math.log(2e-4), math.log(5e-3)))),
            truncated=float(rng.uniform(0.0, 0.04)),
            truncated_early=float(rng.choice((0.0, 0.0, 0.05, 0.15))),
        )

    def along(self, step: int) -> float:
        """Share of the run that is behind; growth happens along it."""
        return min(step / self.steps, 1.0)
