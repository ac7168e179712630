"""Chained addition and subtraction: `07+3-2+5=` -> `<think>07+3=10;10-2=08;08+5=13;</think><answer>13</answer>`.

The smallest task that behaves like reasoning with a verifier: a chain of steps that must all be right, an answer format,
and endless loops for those who forget to stop. Demonstrations for the warm start are mixed on purpose, so that the
policy knows the format, rarely gets the answer right and sometimes never stops.
"""

import random
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.tasks import TRAIN
from trainer.types import Prompt, Verdict

ANSWER = re.compile(r"<think>[^<]*</think><answer>(\d\d)</answer>")
STYLES = (("steps", 0.4), ("direct", 0.3), ("check", 0.1), ("loop", 0.1), ("forget", 0.1))
LOOP_TOKENS = 64
MOST_REPEATS, HIGHEST = 10_000, 99


Operands = tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]]


class Harder(BaseModel):
    """A second held-out set, of problems longer than those trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operands: Operands = (7, 8)
    """Fewest and most operands of a problem."""
    prompts: int = Field(default=1000, ge=1, le=20_000)


class ArithmeticSpec(BaseModel):
    """Size and difficulty of the task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["arithmetic"] = "arithmetic"

    seed: int = 0
    """Decides the prompts; runs with different recipe seeds share them."""
    training_prompts: int = Field(default=2000, ge=1, le=100_000)
    """Distinct training prompts; one pass over them is an epoch."""
    held_out_prompts: int = Field(default=1000, ge=1, le=20_000)
    """Distinct prompts that are never trained."""
    operands: Operands = (2, 6)
    """Fewest and most operands of a problem: the number of steps."""
    largest: int = Field(default=5, ge=1, le=50)
    """Largest operand."""
    start: int = Field(default=20, ge=1, le=100)
    """Problems start below this number."""
    top: int = Field(default=99, ge=1, le=99)
    """No value on the way is above this or below 0."""
    harder: Harder | None = None
    """A held-out set `harder` beside `held_out`, evaluated with it."""

    @model_validator(mode="after")
    def _possible(self) -> "ArithmeticSpec":
        for name, (low, high) in (("operands", self.operands), ("harder.operands", (self.harder or Harder()).operands)):
            if low > high:
                raise ValueError(f"{name} must be fewest and most, not {low} and {high}")
        if self.start > self.top + 1 or 2 * self.largest - 1 > self.top:
            raise ValueError("top must be at least start - 1 and 2 * largest - 1, or there is no way to stay inside")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the training prompts; a setting at its default is left out, so that a new one changes nothing."""
        always = ("kind", "seed", "training_prompts", "held_out_prompts")
        changed = self.model_dump(mode="json", exclude={"harder"}, exclude_defaults=True)
        return {name: getattr(self, name) for name in always} | changed


class Arithmetic:
    """The task; implements `Task`. Held-out prompts are drawn first and barred from training."""

    name = "arithmetic"
    workers = 0

    def __init__(self, spec: ArithmeticSpec, tokenizer: Any) -> None:
        rng = random.Random(f"arithmetic-{spec.seed}")
        texts: dict[str, str] = {}
        _draw(rng, spec, spec.operands, spec.held_out_prompts + spec.training_prompts, texts)
        pairs = list(texts.items())
        self._splits: dict[str, tuple[Prompt, ...]] = {
            "held_out": _prompts(pairs[: spec.held_out_prompts], tokenizer),
            TRAIN: _prompts(pairs[spec.held_out_prompts :], tokenizer),
        }
        self.held_out: tuple[str, ...] = ("held_out",)
        if spec.harder is not None:
            rng = random.Random(f"arithmetic-harder-{spec.seed}")
            _draw(rng, spec, spec.harder.operands, len(pairs) + spec.harder.prompts, texts)
            self._splits["harder"] = _prompts(list(texts.items())[len(pairs) :], tokenizer)
            self.held_out = ("held_out", "harder")

    def prompts(self, split: str) -> Sequence[Prompt]:
        return self._splits[split]

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """+1 for the right answer in the right format by a model that stopped by itself, else -1."""
        match = ANSWER.fullmatch(completion)
        passed = finished and match is not None and match.group(1) == prompt.answer
        return Verdict(reward=1.0 if passed else -1.0, passed=passed)


def _prompts(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(ordinal=ordinal, text=text, tokens=tuple(tokenizer.encode(text)), answer=answer)
        for ordinal, (text, answer) in enumerate(pairs)
    )


def _draw(rng: random.Random, spec: ArithmeticSpec, operands: Operands, until: int, texts: dict[str, str]) -> None:
    """Add distinct problems to `texts` (problem to answer) until it has `until` of them."""
    repeats = 0
    while len(texts) < until:
        text, answer = _problem(rng, spec, operands)
        repeats = repeats + 1 if text in texts else 0
        if repeats > MOST_REPEATS:
            raise ValueError(f"task: {until} distinct problems cannot be found; allow more operands or larger numbers")
        texts.setdefault(text, answer)


def _problem(rng: random.Random, spec: ArithmeticSpec, operands: Operands) -> tuple[str, str]:
    value = rng.randrange(spec.start)
    text = f"{value:02d}"
    for _ in range(rng.randint(*operands)):
        operand = rng.randint(1, spec.largest)
        plus = value - operand < 0 or (value + operand <= spec.top and rng.random() < 0.5)
        value += operand if plus else -operand
        text += f"{'+' if plus else '-'}{operand}"
    return f"{text}=", f"{value:02d}"


def demonstration(prompt: Prompt, rng: random.Random, clean: bool, wrong_share: float) -> str:
    """One completion to imitate, without the end token. A `clean` one is right and step by step; the others have mixed
    styles, and each of their intermediate results is wrong with probability `wrong_share`."""
    if clean:
        steps, answer = _chain(prompt.text, rng, 0.0)
        return _format("".join(steps), answer)
    style = rng.choices([name for name, _ in STYLES], [share for _, share in STYLES])[0]
    steps, answer = _chain(prompt.text, rng, wrong_share)
    if style == "direct":
        return _format("", answer)
    if style == "check":
        return _format("".join(steps) + steps[-1], answer)
    if style == "forget":
        steps.pop(rng.randrange(len(steps)))
        return _format("".join(steps), answer)
    if style == "loop":
        return "<think>" + ("".join(steps) * LOOP_TOKENS)[:LOOP_TOKENS]
    return _format("".join(steps), answer)


def _format(thinking: str, answer: str) -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def _chain(text: str, rng: random.Random, wrong_share: float) -> tuple[list[str], str]:
    """Steps `07+3=10;` and the final value; a wrong intermediate result is carried on."""
    value, steps = int(text[:2]), []
    for sign, digit in re.findall(r"([+-])(\d+)", text[2:]):
        result = value + int(digit) if sign == "+" else value - int(digit)
        if rng.random() < wrong_share:
            result += rng.choice((-2, -1, 1, 2))
        result = min(max(result, 0), HIGHEST)
        steps.append(f"{value:02d}{sign}{digit}={result:02d};")
        value = result
    return steps, f"{value:02d}"
