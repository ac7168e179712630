"""What one optimizer step asks for, in tokens and FLOPs: nothing here knows a GPU. Pure."""

from dataclasses import dataclass

from trainer.plan.assumptions import Values
from trainer.plan.shape import Shape
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """Of one optimizer step."""

    completions: int
    mean_length: float
    """Tokens of a completion."""
    context: float
    """Tokens that the average token of a completion looks back on, its prompt included."""
    generated: float
    """Tokens to generate."""
    prompts: float
    """Tokens of the prompts; the completions of a group share theirs."""
    trained: float
    """Tokens that the learner computes: groups with signal, and their prompts."""
    longest: int
    """Tokens of the longest sequence."""
    generation_flops: float
    body_flops: float
    """Learner, layers: forward, backward, and a second forward where activations are recomputed."""
    head_flops: float
    """Learner, language-model head: forward and backward."""

    @property
    def training_flops(self) -> float:
        return self.body_flops + self.head_flops


def context(prompt: float, mean: float, spread: float) -> float:
    """Mean over all tokens of all completions of what stands before them.

    A completion of L tokens has L places with L / 2 tokens before them on average, so long ones count with their square:
    prompt + mean / 2 * (1 + spread^2), spread being the standard deviation over the mean.
    """
    return prompt + mean / 2 * (1 + spread**2)


def work_of(recipe: Recipe, shape: Shape, values: Values, recompute: bool) -> Work:
    """The step of a recipe."""
    groups, samples = recipe.batch.prompts_per_step, recipe.batch.samples_per_prompt
    mean = values.mean_length * recipe.length.max_new_tokens
    behind = context(values.prompt_tokens, mean, values.length_spread)
    generated, prompts = groups * samples * mean, groups * values.prompt_tokens
    trained = values.signal * (generated + prompts)
    per_token = shape.body_flops + shape.score_flops(behind)
    return Work(
        completions=groups * samples,
        mean_length=mean,
        context=behind,
        generated=generated,
        prompts=prompts,
        trained=trained,
        longest=longest_sequence(recipe),
        generation_flops=(generated + prompts) * per_token + generated * shape.head_flops,
        body_flops=trained * per_token * (4 if recompute else 3),
        head_flops=values.signal * generated * shape.head_flops * 3,
    )


def longest_sequence(recipe: Recipe) -> int:
    """Tokens of the longest prompt and completion that the recipe allows."""
    return int(getattr(recipe.task, "max_prompt_tokens", 0) or 0) + recipe.length.max_new_tokens
