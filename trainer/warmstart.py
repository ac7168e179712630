"""Warm start: a short supervised run that teaches the format, some of the skill and a few bad habits; cached on disk.

The result is an ordinary model directory under `${XDG_CACHE_HOME:-~/.cache}/scalerl/`, named by a hash of everything
that determines it, so that it is made once. It appears by one rename: an interrupted warm start leaves nothing behind.
"""

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import __version__ as transformers_version

from trainer.learn.fp32_head import hidden_states, logits
from trainer.model import Model, Tokenizer, make_tiny
from trainer.settings import TinyModel, WarmStart
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec, demonstration
from trainer.tasks.tokenizer import character_tokenizer

FORMAT = 1
"""Raised when the code below changes what comes out for the same settings."""


def warm_started(
    shape: TinyModel, task: ArithmeticSpec, spec: WarmStart, progress: Callable[[int, int], None] = lambda *_: None
) -> Path:
    """Directory with model and tokenizer; made on the first call. `progress(step, steps)` is called while it is made."""
    path = _cache() / f"warmstart-{_digest(shape, task, spec)}"
    if path.is_dir():
        return path
    tokenizer = character_tokenizer()
    model = make_tiny(shape, tokenizer, spec.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(spec.threads, os.cpu_count() or 1))
    try:
        _imitate(model, tokenizer, Arithmetic(task, tokenizer), spec, progress)
    finally:
        torch.set_num_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".warmstart-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(path)
    except OSError:
        if not path.is_dir():  # another process may have finished the same warm start first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "scalerl"


def _digest(shape: TinyModel, task: ArithmeticSpec, spec: WarmStart) -> str:
    settings = [FORMAT, torch.__version__, transformers_version]
    settings += [shape.model_dump(mode="json"), task.identity(), spec.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _imitate(
    model: Model, tokenizer: Tokenizer, task: Arithmetic, spec: WarmStart, progress: Callable[[int, int], None]
) -> None:
    rng = random.Random(f"warmstart-{spec.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, betas=(0.9, 0.95), weight_decay=0.01)
    prompts = task.prompts("train")
    for step in range(spec.steps):
        rate = spec.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * step / spec.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = []
        for prompt in rng.choices(prompts, k=spec.demonstrations_per_step):
            text = demonstration(prompt, rng, clean=step < spec.clean_share * spec.steps, wrong_share=spec.wrong_share)
            ended = [tokenizer.eos_token_id] if text.endswith("</answer>") else []
            rows.append((list(prompt.tokens), [*tokenizer.encode(text), *ended]))
        loss = _imitation_loss(model, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, spec.steps)


def _imitation_loss(model: Model, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean cross-entropy over the completion tokens of (prompt, completion) pairs; right padding."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, completion) in enumerate(rows):
        whole = torch.tensor(prompt + completion)
        tokens[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    scores = logits(model, hidden_states(model, input_ids=tokens[:, :-1], use_cache=False))
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten())
