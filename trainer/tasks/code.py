"""Problems with unit tests. Reward +1 if every test passes, else -1 (ScaleRL, section 3).

    completion -> last fenced Python block after the thinking -> sandbox, test by test -> all passed?

Outputs and results are compared here: a program is never told what is expected of it.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from trainer.data.files import Record
from trainer.tasks.prompts import after_thinking, read_splits
from trainer.tasks.sandbox.pool import Job, Sandbox, check
from trainer.tasks.sandbox.wire import decode
from trainer.tasks.specs import CodeSpec
from trainer.types import Prompt, Verdict

FENCE = re.compile(r"^[ \t]*```(?:python3?|py)?[ \t]*\r?\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
SLACK = 64 << 10
"""Bytes that an output may be longer than twice the expected one."""


@dataclass(frozen=True)
class Test:
    """One test; `expected` stays in this process, except that asserts go to a process of their own."""

    mode: str
    data: str
    expected: Any = None


class Code:
    """The task; implements `Task`. Refuses to exist where unknown code cannot be run safely."""

    name = "code"

    def __init__(self, spec: CodeSpec, tokenizer: Any) -> None:
        self.guarantees = check()
        self._splits = read_splits(spec, tokenizer, _lack)
        self.held_out = tuple(spec.held_out)
        self.workers = spec.workers
        self._spec = spec
        self._sandbox = Sandbox(spec.workers)

    def prompts(self, split: str) -> Sequence[Prompt]:
        return self._splits[split]

    def verify(self, prompt: Prompt, completion: str, finished: bool) -> Verdict:
        """+1 if the program of a model that stopped by itself passes all tests, else -1."""
        code = extract(prompt.text, completion) if finished else None
        passed = code is not None and self._passes(code, prompt.tests)
        return Verdict(reward=1.0 if passed else -1.0, passed=passed)

    def _passes(self, code: str, tests: Sequence[str]) -> bool:
        """Stops at the first test that fails. Asserts run last, all in one pair of processes."""
        end = time.monotonic() + self._spec.total_limit_s
        parsed = [parse_test(test) for test in tests]
        asserts = [test.data for test in parsed if test.mode == "asserts"]
        for test in parsed:
            if test.mode != "asserts" and not self._run(code, test, end, self._spec.time_limit_s):
                return False
        if not asserts:
            return True
        seconds = min(self._spec.total_limit_s, self._spec.time_limit_s * len(asserts))
        return self._run(code, Test("asserts", json.dumps(asserts)), end, seconds)

    def _run(self, code: str, test: Test, end: float, seconds: int) -> bool:
        left = end - time.monotonic()
        if left <= 0:
            return False
        job = Job(
            mode=test.mode,  # type: ignore[arg-type]
            code=code,
            data=test.data,
            cpu_s=seconds,
            wall_s=min(2.0 * seconds, left),
            memory_mib=self._spec.memory_mib,
            output_bytes=2 * len(str(test.expected)) + SLACK,
        )
        result = self._sandbox.run(job)
        if result.outcome != "ok":
            return False
        if test.mode == "stdin":
            return same_output(test.expected, result.output.decode(errors="replace"))
        return test.mode == "asserts" or same_result(test.expected, result.output)


def extract(prompt: str, completion: str) -> str | None:
    """The last fenced block after the thinking that is marked as Python or not marked at all."""
    text = after_thinking(prompt, completion)
    blocks = FENCE.findall(text) if text is not None else []
    return str(blocks[-1]) if blocks else None


def parse_test(text: str) -> Test:
    """A test of `Record.tests`: a JSON object, or Python source."""
    try:
        test = json.loads(text)
    except ValueError:
        return Test("asserts", text)
    if isinstance(test, dict) and {"function", "arguments", "output"} == test.keys():
        return Test("call", json.dumps([test["function"], test["arguments"]]), test["output"])
    if isinstance(test, dict) and {"input", "output"} == test.keys():
        return Test("stdin", str(test["input"]), str(test["output"]))
    return Test("asserts", text)


def same_output(expected: str, output: str) -> bool:
    """Equal line by line but for space at the ends; where a line differs, word by word, numbers by value (`1.0` is `1`)."""
    wanted, given = ([line.strip() for line in text.strip().split("\n")] for text in (expected, output))
    return len(wanted) == len(given) and all(a == b or _same_words(a, b) for a, b in zip(wanted, given, strict=True))


def same_result(expected: Any, output: bytes) -> bool:
    """Equal by value; a tuple is as good as a list, because JSON has only lists."""
    try:
        return bool(_lists(decode(json.loads(output))) == expected)
    except (ValueError, RecursionError):
        return False


def _same_words(wanted: str, given: str) -> bool:
    pairs = list(zip(wanted.split(), given.split(), strict=False))
    if len(wanted.split()) != len(given.split()):
        return False
    try:
        return all(a == b or Decimal(a) == Decimal(b) for a, b in pairs)
    except InvalidOperation:
        return False


def _lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_lists(item) for item in value]
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value


def _lack(record: Record) -> str:
    return "" if record.tests else "has no tests"
