"""What the tasks on files share: prompts around the problems of a file, and where the answer of a completion begins."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.data.files import Record, read_records
from trainer.data.unit_tests import DataError
from trainer.tasks import TRAIN
from trainer.tasks.specs import CodeSpec, MathSpec, PromptFile
from trainer.types import Prompt


def read_splits(
    spec: MathSpec | CodeSpec, tokenizer: Any, check: Callable[[Record], str]
) -> dict[str, tuple[Prompt, ...]]:
    """Prompts of `train` and of every held-out set. `check` says what a record lacks for this task, or nothing.

    Raises:
        DataError: a file cannot be used, a prompt is too long, or a held-out prompt is also trained on.
    """
    sources: Mapping[str, PromptFile] = {TRAIN: spec.train, **spec.held_out}
    records = {split: _read(source, check) for split, source in sources.items()}
    trained = {_squeezed(record.prompt): record.id for record in records[TRAIN]}
    for split in spec.held_out:
        for record in records[split]:
            if (twin := trained.get(_squeezed(record.prompt))) is not None:
                raise DataError(
                    f"{sources[split].path}: {record.id} is also the training prompt {twin}; remove one of them, "
                    "as data preparation does"
                )
    return {
        split: tuple(_prompt(spec, sources[split], tokenizer, ordinal, record) for ordinal, record in enumerate(found))
        for split, found in records.items()
    }


def after_thinking(prompt: str, completion: str) -> str | None:
    """The text after the thinking block; None where thinking has begun and never ended."""
    _, closed, rest = completion.rpartition("</think>")
    if closed:
        return rest
    begun = "<think>" in completion or prompt.rstrip().endswith("<think>")
    return None if begun else completion


def _read(source: PromptFile, check: Callable[[Record], str]) -> Sequence[Record]:
    records = []
    for record in itertools.islice(read_records(source.path, source.columns, source.split), source.first):
        if lack := check(record):
            raise DataError(f"{source.path}: {record.id} {lack}")
        records.append(record)
    if not records:
        raise DataError(f"{source.path}: holds no prompts")
    return records


def _prompt(spec: MathSpec | CodeSpec, source: PromptFile, tokenizer: Any, ordinal: int, record: Record) -> Prompt:
    text = spec.template.replace("{prompt}", record.prompt)
    if spec.chat:
        text = _as_chat(tokenizer, text)
    tokens = tuple(tokenizer.encode(text, add_special_tokens=not spec.chat))
    if len(tokens) > spec.max_prompt_tokens:
        raise DataError(
            f"{source.path}: {record.id} makes a prompt of {len(tokens)} tokens; task.max_prompt_tokens allows "
            f"{spec.max_prompt_tokens}"
        )
    return Prompt(
        ordinal=ordinal,
        text=text,
        tokens=tokens,
        answer=record.answer or "",
        tests=record.tests,
        id=record.id,
        difficulty=record.difficulty or "",
    )


def _as_chat(tokenizer: Any, text: str) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("task.chat: the tokenizer of this model has no chat template; set it to false")
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
