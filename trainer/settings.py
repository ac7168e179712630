"""The parts of a recipe, one class per section of the YAML; every key with its unit.

Defaults are the values of the ScaleRL paper (section 3) where it names one. Nothing heavy is imported.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from controlplane.contract.yamlfile import Misplaced
from trainer.checkpoint.health import HealthSpec


class Part(BaseModel):
    """Frozen, and a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TinyModel(Part):
    """Shape of the model made from nothing: Qwen3 architecture, untied head, 0.5 million parameters by default."""

    hidden: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    """Query heads; must be a multiple of `kv_heads`."""
    kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=32, ge=2, multiple_of=2)
    mlp: int = Field(default=320, ge=8)
    """Width of the gated MLP."""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"tiny-{self.layers}x{self.hidden}"


class ModelDirectory(Part):
    """A Hugging Face model directory on disk, with its tokenizer."""

    path: Path
    """Directory with `config.json`, weights and tokenizer files; nothing is downloaded."""
    shape: str = ""
    """Shipped shape that `scalerl plan` calculates with while the directory is not there; nothing else reads it."""

    @property
    def name(self) -> str:
        """What people call it."""
        return self.path.resolve().name

    @model_validator(mode="after")
    def _exists(self) -> "ModelDirectory":
        if not (self.path / "config.json").is_file():
            raise Misplaced(("path",), f"{self.path} is not a model directory: it has no config.json")
        return self


def _model_kind(data: Any) -> str:
    return "directory" if isinstance(data, ModelDirectory) or (isinstance(data, dict) and "path" in data) else "tiny"


ModelSpec = Annotated[
    Annotated[TinyModel, Tag("tiny")] | Annotated[ModelDirectory, Tag("directory")], Discriminator(_model_kind)
]
"""A shape to make, or a directory to open: `path` tells which."""


class WarmStart(Part):
    """Supervised steps before reinforcement learning."""

    steps: int = Field(default=800, ge=0)
    """Optimizer steps; 0 starts from random weights."""
    demonstrations_per_step: int = Field(default=16, ge=1)
    lr: float = Field(default=1.5e-3, gt=0)
    """Peak learning rate of AdamW (beta2 0.95), cosine down to a tenth."""
    clean_share: float = Field(default=0.7, ge=0, le=1)
    """Share of the steps, from the start, in which every demonstration is right and step by step."""
    wrong_share: float = Field(default=0.3, ge=0, le=1)
    """Probability of a wrong intermediate result in the mixed demonstrations after that."""
    seed: int = 0
    """Decides initial weights and demonstrations; runs with different recipe seeds share the warm start."""
    threads: int = Field(default=2, ge=1)
    """CPU threads while it is made: nothing else of ours runs then, so a second one is worth having."""


class Batch(Part):
    """Completions per optimizer step."""

    prompts_per_step: int = Field(default=48, ge=1)
    """Prompts (groups) per optimizer step; a tunable."""
    samples_per_prompt: int = Field(default=16, ge=2)
    """Completions per prompt; the group that rewards are centred in."""


class Loss(Part):
    """The objective (ScaleRL, section 4 and appendix A.2). The defaults are ScaleRL's own."""

    kind: Literal["cispo", "grpo", "gspo", "reinforce"] = "cispo"
    """cispo: truncated importance weight with stop-gradient. grpo: clipped surrogate per token (DAPO is grpo with unequal
    clips and prompt average). gspo: the same with one ratio per sequence. reinforce: no ratio at all."""
    aggregation: Literal["prompt", "sample", "token"] = "prompt"
    """prompt: mean over tokens inside a prompt, then over prompts. sample: each completion equal. token: each token equal."""
    advantage: Literal["batch", "prompt", "none"] = "batch"
    """What centred rewards are divided by: standard deviation over the batch, over the prompt, or nothing."""
    zero_variance_filter: bool = True
    """Groups whose rewards are all equal are left out of the effective batch, also of its counts."""
    ratio_max: float = Field(default=5.0, ge=1)
    """cispo: absolute upper bound of the importance ratio, never 1 + eps; a tunable."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """grpo, gspo: eps-, the ratio is cut at 1 - eps-; a tunable."""
    clip_high: float = Field(default=0.2, ge=0)
    """grpo, gspo: eps+, the ratio is cut at 1 + eps+; a tunable."""
    mask_truncated: bool = False
    """Completions that hit the length limit carry no loss (they still count in their group's mean)."""


class Precision(Part):
    """Number formats of learner and generator."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Format of the forward pass on both sides. The learner's weights and optimizer state are float32 in any case."""
    learner_head: Literal["float32", "model"] = "float32"
    """Format of the language-model head and its logits; `model` is that of `dtype`."""
    generator_head: Literal["float32", "model"] = "float32"
    """Must be that of the learner: a float32 head on one side alone makes the mismatch worse."""

    @model_validator(mode="after")
    def _both_sides(self) -> "Precision":
        if self.learner_head != self.generator_head:
            odd, other = ("learner_head", "generator_head")
            if self.generator_head == "model":
                odd, other = other, odd
            raise Misplaced(
                (odd,), f"{other} must be the same: a float32 head on one side alone makes the mismatch worse"
            )
        return self


class Rollout(Part):
    """How completions are sampled."""

    generator: Literal["torch", "vllm"] = "torch"
    """torch: the batched sampler of this project. vllm: vLLM's engine."""
    process: Literal["auto", "same", "own"] = "auto"
    """vllm: whether its engine works in the process that asks it or in one of its own. auto: of its own on several GPUs,
    and on a GPU of a cluster; else the same."""
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """vllm: GPUs that share the model of one generator. null: those that a generator has on a cluster, else 1."""
    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature of sampler and learner; a tunable."""
    overlap: bool = False
    """Generate the next batch while the learner trains, in a thread of its own with as many cores: on CPUs, two
    devices for each of `threads`. Useless with vLLM on one GPU and with a synchronous mode."""
    slots: int = Field(default=128, ge=1)
    """Completions decoded at once. More slots than a batch needs make training more off-policy."""


class OptimizerSpec(Part):
    """AdamW with a constant learning rate after a linear warm-up."""

    lr: float = Field(default=5e-7, gt=0)
    """Base learning rate, reached after the warm-up."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-15, gt=0)
    """Tiny on purpose: a larger one acts as a hidden gradient clipping."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Tokens per forward and backward pass; memory grows with it, the result does not change."""
    recompute: bool = False
    """Compute the activations of a layer again in the backward pass: a third more products, a fraction of the memory, the
    same result. `scalerl plan` says what fits without."""
    compile: bool = False
    """Compile the learner's forward pass with torch.compile: slow first steps, faster ones later."""

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "OptimizerSpec":
        if self.compile and self.recompute:
            raise Misplaced(("compile",), "cannot be combined with recompute; set one of them to false")
        return self


class Staleness(Part):
    """How far generators may run ahead of the learner (ScaleRL, section 3)."""

    mode: Literal["pipeline", "ppo_off_policy"] = "pipeline"
    """pipeline: generation never stops, weights change in flight (PipelineRL-k). ppo_off_policy: k batches under one
    policy, then k optimizer steps on them, in turns (PPO-off-policy-k)."""
    max_staleness: int = Field(default=8, ge=0, le=1000)
    """k. pipeline: most optimizer steps between the oldest weights in a completion and the learner that uses it.
    ppo_off_policy: batches per phase; 1 (or 0) is synchronous. A tunable."""


class LengthPenalty(Part):
    """Reward added to right answers: factor * clip((longest - tokens) / cache - 1, -1, 0) (ScaleRL, appendix A.10)."""

    factor: float = Field(default=1.0, ge=0)
    """The tunable `length_penalty`."""
    longest: int = Field(default=14_336, ge=1)
    """L_max, tokens: here the penalty reaches -1."""
    cache: int = Field(default=2048, ge=1)
    """L_cache, tokens: over these last tokens the penalty grows from 0."""


class Length(Part):
    """Length limits, and what keeps completions inside them (ScaleRL, section 2 and appendix A.10)."""

    max_new_tokens: int = Field(default=14_336, ge=1)
    """Longest completion, tokens, answer included; a tunable."""
    control: Literal["interruption", "penalty", "none"] = "interruption"
    thinking_budget: int = Field(default=12_288, ge=1)
    """interruption: tokens of thinking; it happens within `window` of them. A tunable."""
    window: tuple[float, float] = (10 / 12, 1.0)
    """interruption: where thinking is cut, uniformly, as proportions of the budget."""
    closing_phrase: str = "</think>"
    """interruption: forced text that ends the thinking; its tokens carry no loss. Must contain the token `</think>`."""
    penalty: LengthPenalty = LengthPenalty()
    """penalty: its shape."""

    @model_validator(mode="after")
    def _ordered(self) -> "Length":
        low, high = self.window
        if not 0 < low <= high <= 1:
            raise ValueError("window must be two proportions, 0 < low <= high <= 1")
        if "</think>" not in self.closing_phrase:
            raise ValueError("closing_phrase must contain </think>")
        return self


class CurriculumSpec(Part):
    """Which prompts an epoch holds."""

    no_positive_resampling: float | None = Field(default=0.9, gt=0, le=1)
    """Prompts with at least this pass rate over all their completions are left out of later epochs; null: none is."""
    min_samples: int = Field(default=64, ge=1)
    """Completions seen before that is judged."""


class EarlyStopping(Part):
    """End the run when the first held-out set no longer improves."""

    patience: int = Field(default=10, ge=1)
    """Evaluations without improvement, not steps."""
    min_delta: float = Field(default=0.001, ge=0)
    """Smallest gain in mean@k that counts as one."""


class Evaluation(Part):
    """Held-out mean@k and pass@k, with the same random numbers each time."""

    every: int = Field(default=100, ge=1)
    """Optimizer steps between two evaluations; there is also one at the start and one at the end."""
    prompts: int = Field(default=1000, ge=1)
    """Prompts of each held-out set, its first ones; a smaller set is used whole."""
    k: int = Field(default=16, ge=1)
    """Completions per prompt."""
    slots: int = Field(default=256, ge=1)
    """Completions decoded at once."""
    targets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Pass rates of the first held-out set whose reaching is an event, for example 0.6, 0.75, 0.85, 0.9."""
    early_stopping: EarlyStopping | None = None


class CheckpointSpec(Part):
    """When checkpoints are written and how many stay."""

    every: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    keep: int = Field(default=4, ge=1)
    """Checkpoints on disk; the newest, the best and the last two good ones stay whatever the number."""
    snapshots: int = Field(default=0, ge=0)
    """Newest checkpoints that are also kept in memory, with what was in flight: for a rollback without the disk, and
    for forks."""
    replay: Literal["skip", "same", "reshuffle"] = "skip"
    """Prompts trained since the target of a rollback: left out of this epoch, given again in the same order, or given
    again in another order."""
    health: HealthSpec = HealthSpec()


class Change(Part):
    """Values that a run is known to need from some step on, as `scalerl schedule` writes them down from an earlier run."""

    step: int = Field(ge=1)
    """First optimizer step with these values."""
    set: dict[str, float] = Field(min_length=1)
    """Tunable -> value, inside the guard rails."""


class Fault(Part):
    """A drill: at a step of branch 0 the learning rate is multiplied as a person's typo would. Fires once."""

    step: int = Field(ge=1)
    """First optimizer step that is taken with the wrong rate."""
    kind: Literal["base_lr"]
    factor: float = Field(gt=0)
    """Factor on the base learning rate, which is part of every checkpoint: a rollback brings the right one back."""


class Metrics(Part):
    """Where the exporter listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """0 takes any free port; `target.json` in the run directory names it."""


class Log(Part):
    """A copy of every step and evaluation in a tracker; Prometheus and the files of the run are complete without it."""

    kind: Literal["none", "wandb", "trackio"] = "none"
    """wandb and trackio are extras of their own: pip install 'scalerl[wandb]'. Their own environment variables decide account,
    place and whether anything leaves the machine (WANDB_MODE=offline, TRACKIO_DIR)."""
    project: str = Field(default="scalerl", min_length=1)
    queue: int = Field(default=1000, ge=1)
    """Entries that may wait for the tracker; more are dropped and counted, and no step ever waits."""
