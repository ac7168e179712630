"""Problems with an exact answer. Reward +1 for the right one, else -1 (ScaleRL, section 3).

completion -> text after the thinking -> answer -> equal as text or integers?  yes -> right
                                                   else math-verify, in a process that can be killed
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from typing import Any

from trainer.data.files import Record
from trainer.data.unit_tests import DataError
from trainer.tasks.prompts import after_thinking, read_splits
from trainer.tasks.sandbox.pool import Job, Sandbox
from trainer.tasks.specs import MathSpec
from trainer.types import Prompt, Verdict

LONGEST = 500
"""Characters of an answer; no reference answer is near it, and parsers take more than linear time."""
TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
INTEGER = re.compile(r"[+-]?\d{1,300}")
WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
SPELLINGS = ((r"\left", ""), (r"\right", ""), (r"\!", ""), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), ("−", "-"))


class Mathematics:
    """The task; implements `Task`."""

    name = "math"

    def __init__(self, spec: MathSpec, tokenizer: Any) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise DataError("task.kind: math needs math-verify: pip install 'scalerl[math]'")
        self._splits = read_splits(spec, tokenizer, _lack)
        self.held_out = tuple(spec.held_out)
        self.workers = spec.workers
        self._spec = spec
        self._sandbox = Sandbox(spec.workers, preload="trainer.tasks.equivalence:equivalent")

    def prompts(self, split: str) -> Sequence[Prompt]:
        return self._splits[split]

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """+1 for the right answer by a model that stopped by itself, else -1; no answer in time is a wrong one."""
        answer = extract(prompt.text, completion) if finished else None
        passed = answer is not None and self._same(prompt.answer, answer)
        return Verdict(reward=1.0 if passed else -1.0, passed=passed)

    def _same(self, reference: str, answer: str) -> bool:
        if len(answer) > 10 * LONGEST:
            return False
        known, given = normalised(reference), normalised(answer)
        if known == given:
            return True
        if not given or len(given) > LONGEST:
            return False
        if INTEGER.fullmatch(known) and INTEGER.fullmatch(given):
            return int(known) == int(given)
        limit = self._spec.time_limit_s
        job = Job("trusted", "", json.dumps([known, given]), limit, float(limit), self._spec.memory_mib, 64)
        return self._sandbox.run(job).output == b"true"


def extract(prompt: str, completion: str) -> str | None:
    """The answer: inside the last `<answer>`, or the last `\\boxed{}`, of the text after the thinking."""
    text = after_thinking(prompt, completion)
    if text is None:
        return None
    tagged = TAGGED.findall(text)
    if tagged:
        return last_boxed(tagged[-1]) or str(tagged[-1])
    return last_boxed(text)


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{}` whose braces are balanced up to its own end."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    begin = start + len(r"\boxed{")
    depth, position = 1, begin
    for brace in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        position = begin + brace.start()
        if depth == 0:
            return text[begin:position]
    return None


def normalised(answer: str) -> str:
    """The same answer in one spelling: without dollar signs, sizing commands, needless spaces and a final full stop."""
    text = answer.strip()
    for opening, closing in WRAPPERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.removesuffix(".")
    for old, new in SPELLINGS:
        text = re.sub(rf"{re.escape(old)}(?![a-zA-Z])", new.replace("\\", r"\\"), text)
    text = " ".join(text.split())
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", text)


def _lack(record: Record) -> str:
    return "" if record.answer and record.answer.strip() else "has no answer"
