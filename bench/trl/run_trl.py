"""One run of TRL's GRPOTrainer, in its own environment: `build/trl-env/bin/python bench/trl/run_trl.py --start DIR --out DIR`

Same start, prompts, verifier, group size, lengths, temperature and optimizer settings as `trainer/recipes/tiny.yaml`.
TRL's schedule starts one step later than ours, and it exempts norms from weight decay; both are its own way.
A step is timed from the end of the one before, evaluation excluded: generation, rewards, loss, optimizer, data loading.

    config     TRL's own defaults                      its nearest to ScaleRL
    default    loss dapo, clip 0.2, group scaling
    scalerl                                            loss cispo, ratio at most 5, batch scaling, head in float32
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import shared

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "scalerl": {
        "loss_type": "cispo",
        "epsilon_high": 5.0,
        "scale_rewards": "batch",
        "cast_lm_head_to_fp32": True,
    },
}


class Meter:
    """Wall and CPU seconds of the step in progress, and which part of them generation and preparation took."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.seen: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._parts = {"generate": 0.0, "prepare": 0.0}

    def close(self, completions: int) -> None:
        """The step ends here; the next one begins with `restart`."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        parts = {"generate": self._parts["generate"], "learn": wall - self._parts["prepare"]}
        self.steps.append({"seconds": wall, "cpu": cpu, "completions": completions, **parts, **self.seen})

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to a part."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._part(name):
                return function(*args, **kwargs)

        return wrapper

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._parts[name] += time.perf_counter() - started


def reward_function(task: Any, tokenizer: Any, meter: Meter) -> Callable[..., list[float]]:
    """The task's own verdict on the same text that our trainer judges."""
    prompts, end = task.prompts("train"), tokenizer.eos_token_id

    def arithmetic(completion_ids: Sequence[Sequence[int]], ordinal: Sequence[int], **_: Any) -> list[float]:
        finished = [bool(ids) and ids[-1] == end for ids in completion_ids]
        texts = tokenizer.batch_decode(
            [list(ids[:-1] if done else ids) for ids, done in zip(completion_ids, finished, strict=True)]
        )
        verdicts = [
            task.verify(prompts[index], text, done) for index, text, done in zip(ordinal, texts, finished, strict=True)
        ]
        meter.seen = {
            "length": sum(map(len, completion_ids)) / len(completion_ids),
            "passed": sum(verdict.passed for verdict in verdicts) / len(verdicts),
        }
        return [verdict.reward for verdict in verdicts]

    return arithmetic


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="model directory, as `trainer.warmstart` makes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=list(shared.MODELS), default="0.5M")
    parser.add_argument("--config", choices=list(CONFIGS), default="default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=128, help="sequences per forward and backward pass")
    parser.add_argument("--continuous-batching", action="store_true", help="generate with transformers' own engine")
    parser.add_argument("--cache", help="cache_implementation of generation, for example static")
    parser.add_argument("--every", type=int, default=shared.NEVER, help="steps between evaluations")
    parser.add_argument("--until", type=float, default=2.0, help="end once this held-out pass rate is reached")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if shared.read_result(options.out):
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    recipe = shared.open_recipe(options.model)
    task, tokenizer = shared.open_task(recipe, options.start)
    pass_rate = shared.evaluator(recipe, options.start)
    meter = Meter()
    evaluations: list[dict[str, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            self._evaluate(0, model, control)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            meter.close(batch)
            if state.global_step % options.every == 0:
                self._evaluate(state.global_step, model, control)
            meter.restart()

        def _evaluate(self, step: int, model: Any, control: Any) -> None:
            if options.every < shared.NEVER:
                done = {key: sum(s[key] for s in meter.steps) for key in ("seconds", "cpu", "completions")}
                evaluations.append({"step": step, **done, "pass_ratio": pass_rate(model)})
                print(evaluations[-1], flush=True)
                control.should_training_stop = evaluations[-1]["pass_ratio"] >= options.until
            meter.restart()

    batch = recipe.batch.prompts_per_step * recipe.batch.samples_per_prompt
    config = GRPOConfig(
        output_dir=str(options.out / "trl"),
        seed=options.seed,
        max_steps=options.steps,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=batch // options.micro_batch,
        num_generations=recipe.batch.samples_per_prompt,
        max_completion_length=recipe.length.max_new_tokens,
        temperature=recipe.rollout.temperature,
        beta=0.0,
        use_vllm=False,
        use_transformers_continuous_batching=options.continuous_batching,
        cache_implementation=options.cache,
        learning_rate=recipe.optimizer.lr,
        adam_beta1=recipe.optimizer.beta1,
        adam_beta2=recipe.optimizer.beta2,
        adam_epsilon=recipe.optimizer.eps,
        weight_decay=recipe.optimizer.weight_decay,
        max_grad_norm=recipe.optimizer.clip_norm,
        warmup_steps=recipe.optimizer.warmup_steps,
        lr_scheduler_type="constant_with_warmup",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **CONFIGS[options.config],
    )
    prompts = task.prompts("train")
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.start, dtype=torch.float32, attn_implementation="sdpa"),
        reward_funcs=reward_function(task, tokenizer, meter),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [p.text for p in prompts], "ordinal": [p.ordinal for p in prompts]}),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    # Private names of TRL 1.16, wrapped only to see where the time goes.
    trainer._generate_single_turn = meter.timed("generate", trainer._generate_single_turn)
    trainer._generate_and_score_completions = meter.timed("prepare", trainer._generate_and_score_completions)
    trainer.train()
    shared.write_result(options.out, meter.steps, evaluations)


if __name__ == "__main__":
    main()
