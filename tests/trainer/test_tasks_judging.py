"""The math and code tasks, the settings of all tasks, and difficulty by setting in arithmetic."""

import hashlib
import json
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trainer.data.unit_tests import DataError
from trainer.tasks import TRAIN, Task, mathematics
from trainer.tasks import code as coding
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec, Harder, demonstration
from trainer.tasks.code import Code, same_output, same_result
from trainer.tasks.make import make_task
from trainer.tasks.mathematics import Mathematics
from trainer.tasks.prompts import after_thinking
from trainer.tasks.sandbox.pool import SandboxError
from trainer.tasks.specs import CodeSpec, MathSpec, TaskSpec
from trainer.types import Prompt

SPECS: TypeAdapter[Any] = TypeAdapter(TaskSpec)


def spec(folder: Path, train: list[dict[str, Any]], held_out: list[dict[str, Any]], **more: Any) -> Any:
    for name, rows in (("train", train), ("main", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": {"path": folder / "train.jsonl"}, "held_out": {"main": {"path": folder / "main.jsonl"}}}
    return SPECS.validate_python(files | more)


def math_spec(folder: Path, **more: Any) -> Any:
    return spec(folder, [{"problem": "2+2?", "answer": "4"}], [{"problem": "2+3?", "answer": "5"}], kind="math", **more)


def code_spec(folder: Path, **more: Any) -> Any:
    tests = [{"input": "3\n", "output": "9\n"}]
    train, held_out = [{"prompt": "Square.", "tests": tests}], [{"prompt": "Cube.", "tests": ["assert f(2) == 8"]}]
    return spec(folder, train, held_out, kind="code", **more)


# ---- settings and files ---------------------------------------------------------------------------------------------


def test_the_kind_tells_which_task_and_arithmetic_is_meant_without_one() -> None:
    assert SPECS.validate_python({"training_prompts": 5}) == ArithmeticSpec(training_prompts=5)
    with pytest.raises(ValidationError, match="kind"):
        SPECS.validate_python({"kind": "poetry"})


def test_make_task_makes_the_task_of_each_kind(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a").mkdir()
    tasks: list[Task] = [
        make_task(ArithmeticSpec(training_prompts=2, held_out_prompts=2), tokenizer),
        make_task(math_spec(tmp_path), tokenizer),
        make_task(code_spec(tmp_path / "a", workers=3), tokenizer),
    ]
    assert [task.name for task in tasks] == ["arithmetic", "math", "code"]
    assert [task.held_out for task in tasks] == [("held_out",), ("main",), ("main",)]
    assert tasks[0].workers == 0
    assert tasks[2].workers == 3
    for task in tasks:
        for split in (TRAIN, *task.held_out):
            assert [prompt.ordinal for prompt in task.prompts(split)] == list(range(len(task.prompts(split))))


def test_a_prompt_is_the_template_around_the_problem_and_keeps_what_the_file_says(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"problem": "what is {x}?", "answer": "4", "id": "p1", "difficulty": "3/8"}
    made = make_task(
        spec(tmp_path, [row], [{"problem": "q", "answer": "5"}], kind="math", template="q: {prompt} a:"), tokenizer
    )
    (prompt,) = made.prompts(TRAIN)
    assert (prompt.text, prompt.answer, prompt.id, prompt.difficulty) == ("q: what is {x}? a:", "4", "p1", "3/8")
    assert prompt.tokens == tuple(tokenizer.encode(prompt.text))


def test_the_chat_template_of_the_tokenizer_is_used_when_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"task.chat: the tokenizer of this model has no chat template"):
        make_task(math_spec(tmp_path, chat=True), tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}<think>"
    try:
        made = make_task(math_spec(tmp_path, chat=True, template="{prompt}!"), tokenizer)
    finally:
        tokenizer.chat_template = None
    assert made.prompts(TRAIN)[0].text == "user: 2+2?!;<think>"


@pytest.mark.parametrize(
    ("train", "held_out", "more", "message"),
    [
        (
            {"answer": "1", "prompt": "p"},
            {"answer": "1", "prompt": " P\n"},
            {},
            r"main.jsonl:1 is also the training prompt",
        ),
        ({"prompt": "p"}, {"answer": "1", "prompt": "q"}, {}, r"train.jsonl:1 has no answer"),
        (
            {"answer": "1", "prompt": "p"},
            {"answer": "1", "prompt": "q"},
            {"max_prompt_tokens": 9},
            r"max_prompt_tokens allows 9",
        ),
    ],
)
def test_files_that_make_no_task_are_refused_with_their_place(
    tmp_path: Path, tokenizer: Any, train: Any, held_out: Any, more: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_task(spec(tmp_path, [train], [held_out], kind="math", **more), tokenizer)


def test_a_template_without_a_place_and_a_held_out_set_named_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"must contain \{prompt\}"):
        math_spec(tmp_path, template="solve it")
    with pytest.raises(ValidationError, match="train is the name of the training prompts"):
        SPECS.validate_python({"kind": "math", "train": {"path": "x"}, "held_out": {"train": {"path": "x"}}})
    with pytest.raises(ValidationError, match="total_limit_s must be at least"):
        code_spec(tmp_path, total_limit_s=1)


def test_no_code_task_without_a_sandbox_that_holds(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise SandboxError("unknown code cannot be run safely here: no Landlock")

    monkeypatch.setattr(coding, "check", refused)
    with pytest.raises(SandboxError):
        make_task(code_spec(tmp_path), tokenizer)


@pytest.mark.parametrize(
    ("completion", "rest"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("b", "b"),
        ("<think>a", None),
        ("", ""),
    ],
)
def test_the_answer_begins_after_the_thinking(completion: str, rest: str | None) -> None:
    assert after_thinking("p", completion) == rest
    assert after_thinking("p <think>\n", completion) == (rest if "</think>" in completion else None)


# ---- math -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maths(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Mathematics:
    pytest.importorskip("math_verify")
    made = make_task(math_spec(tmp_path_factory.mktemp("math"), time_limit_s=20), tokenizer)
    assert isinstance(made, Mathematics)
    return made


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Mathematics:
    made = make_task(math_spec(tmp_path_factory.mktemp("hurried"), time_limit_s=1), tokenizer)
    assert isinstance(made, Mathematics)
    return made


def judged(task: Mathematics, reference: str, answer: str) -> bool:
    return task.verify(Prompt(0, "p", (), answer=reference), f"<think>hm</think><answer>{answer}</answer>", True).passed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>4</answer>", "4"),
        ("<think><answer>3</answer></think><answer>4</answer>", "4"),
        ("<answer>3</answer> no, <answer> 4 </answer>", " 4 "),
        ("<answer><answer>4</answer>", "4"),
        ("so \\boxed{3} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("<answer>\\boxed{4}</answer> \\boxed{3}", "4"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{4", None),
        ("<think>\\boxed{4}</think> four", None),
        ("<think>\\boxed{4}", None),
        ("4", None),
    ],
)
def test_the_answer_is_the_last_one_after_the_thinking(text: str, answer: str | None) -> None:
    assert mathematics.extract("p", text) == answer


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("4", " 4. "),
        ("070", "70"),
        ("\\frac{1}{2}", "$\\dfrac{1}{2}$"),
        ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\frac{\\pi}{2})"),
        ("\\frac{1}{2}", "0.5"),
        ("3\\sqrt{2}", "\\sqrt{18}"),
        ("1{,}000", "1000"),
        ("x=5", "5"),
        ("\\text{A}", "A"),
        ("x^2+1", "1+x^2"),
    ],
)
def test_the_same_answer_in_another_spelling_is_right(maths: Mathematics, reference: str, answer: str) -> None:
    assert judged(maths, reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("4", "5"),
        ("4", ""),
        ("3", "4 or 3"),
        ("3", "1, 2, 3"),
        ("3", "\\{1,2,3\\}"),
        ("(3,4)", "(4,3)"),
        ("12", "1 2"),
        ("3", "}3\\boxed{4"),
        ("4", "__import__('os').getpid()"),
        ("\\frac13", "0.3333"),
    ],
)
def test_another_answer_is_wrong(maths: Mathematics, reference: str, answer: str) -> None:
    assert not judged(maths, reference, answer)


def test_a_right_answer_counts_only_if_the_model_stopped(maths: Mathematics) -> None:
    prompt, text = Prompt(0, "p", (), answer="4"), "<think></think><answer>4</answer>"
    assert maths.verify(prompt, text, True).reward == 1.0
    assert maths.verify(prompt, text, False).reward == -1.0
    assert maths.verify(prompt, "<answer>4", True).reward == -1.0


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "(" * 200 + "1" + ")" * 200,
        "1" * 2_000_000,
        "\\boxed{" * 50_000,
        "<answer>" * 50_000,
        "\ud800\x00\\",
    ],
    ids=lambda answer: answer[:12].encode(errors="replace").decode(),
)
def test_hostile_answers_are_wrong_within_the_limit(hurried: Mathematics, answer: str) -> None:
    begin = time.monotonic()
    assert not judged(hurried, "1", answer)
    assert time.monotonic() - begin < 60  # the limit is one second; without one, this is hours


def test_comparisons_run_in_several_threads(maths: Mathematics) -> None:
    seen: list[bool] = []
    threads = [threading.Thread(target=lambda: seen.append(judged(maths, "\\frac{1}{4}", "0.25"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 4


# ---- code -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Code:
    made = make_task(code_spec(tmp_path_factory.mktemp("code"), time_limit_s=2, total_limit_s=2), tokenizer)
    assert isinstance(made, Code)
    return made


def passes(task: Code, code: str, *tests: Any) -> bool:
    sources = tuple(test if isinstance(test, str) else json.dumps(test) for test in tests)
    completion = f"<think>```python\nbad\n```</think>Here:\n```python\n{code}\n```\n"
    return task.verify(Prompt(0, "p", (), tests=sources), completion, True).passed


def test_the_program_is_the_last_python_block_after_the_thinking() -> None:
    for text, code in (
        ("```python\na\n```\nthen\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nwith output\n```text\n1\n```", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\r\na\n```", "a\n"),
        ("<think>```python\na\n```</think>", None),
        ("```python\na", None),
        ("a", None),
    ):
        assert coding.extract("p", text) == code


def test_all_kinds_of_tests_must_pass(coder: Code) -> None:
    io = [{"input": "3\n", "output": "9\n"}, {"input": "4\n", "output": "16"}]
    assert passes(coder, "print(int(input()) ** 2)", *io)
    assert not passes(coder, "print(9)", *io)
    call = {"function": "pair", "arguments": [1, [2]], "output": [1, [2]]}
    assert passes(coder, "def pair(a, b): return (a, b)", call)
    assert passes(coder, "class Solution:\n    def pair(self, a, b): return [a, b]", call)
    assert not passes(coder, "def pair(a, b): return None", call)
    assert not passes(coder, "def other(a, b): return [a, b]", call)
    both = ("def f(x): return x ** 3\nif __name__ == '__main__': print(int(input()) ** 2)", *io, "assert f(2) == 8")
    assert passes(coder, *both)
    assert not passes(coder, *both, "assert f(2) == 9")


def test_a_right_program_counts_only_if_the_model_stopped(coder: Code) -> None:
    prompt = Prompt(0, "p", (), tests=('{"input": "", "output": "1"}',))
    assert coder.verify(prompt, "```python\nprint(1)\n```", True).reward == 1.0
    assert coder.verify(prompt, "```python\nprint(1)\n```", False).reward == -1.0
    assert coder.verify(prompt, "print(1)", True).reward == -1.0


def test_all_tests_of_one_completion_share_a_limit(coder: Code) -> None:
    begin = time.monotonic()
    assert not passes(coder, "import time\ntime.sleep(0.9)\nprint(1)", *[{"input": "", "output": "1"}] * 100)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True),
        ("1\n", "1\n\n\n", True),
        ("1.0", "1", True),
        ("0.5 yes", "5e-1 yes", True),
        ("1 2", "1  2", True),
        ("1\n2", "1 2", False),
        ("12", "1 2", False),
        ("yes", "Yes", False),
        ("0.333333", "0.3333334", False),
        ("1", "", False),
        ("1", "nan", False),
        ("1", "1e999999999", False),
    ],
)
def test_outputs_are_compared_line_by_line_and_numbers_by_value(expected: str, output: str, same: bool) -> None:
    assert same_output(expected, output) == same


def test_results_that_are_not_results_are_wrong() -> None:
    assert same_result([1, [2]], b'{"tuple": [1, [2]]}')
    for output in (b"", b"[", b"[" * 10_000, b'{"x": 1}', b'{"object": 0}', b'{"tuple": 1}', b"1" * 5000, b"\xff"):
        assert not same_result(1, output)


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "digest"),
    [
        ({}, "a2816f21089af4678da7fae8e9cd1b63ba65678a743dc4bd7a7f1b1baf37bade"),
        ({"seed": 3}, "54cc90f7ae38f107fd55cbbc41328eaf0ffce5f65f5b9dc1f4415303219a1743"),
    ],
)
def test_the_prompts_of_the_default_difficulty_never_change(
    tokenizer: Any, settings: dict[str, Any], digest: str
) -> None:
    """Digests taken before difficulty was a setting."""
    made = Arithmetic(ArithmeticSpec(**settings), tokenizer)
    rows = [[p.text, list(p.tokens), p.answer] for split in ("held_out", TRAIN) for p in made.prompts(split)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == digest


def test_what_names_a_warm_start_is_the_same_as_before_difficulty_was_a_setting() -> None:
    before = {"kind": "arithmetic", "seed": 0, "training_prompts": 2000, "held_out_prompts": 1000}
    assert ArithmeticSpec().identity() == ArithmeticSpec(operands=(2, 6), harder=Harder()).identity() == before
    assert ArithmeticSpec(largest=9).identity() == before | {"largest": 9}


def test_difficulty_follows_its_settings(tokenizer: Any) -> None:
    settings = ArithmeticSpec(operands=(3, 4), largest=30, start=50, top=80, training_prompts=300, held_out_prompts=10)
    rng = random.Random(0)
    made = Arithmetic(settings, tokenizer)
    for prompt in made.prompts(TRAIN):
        value, steps = int(prompt.text[:2]), re.findall(r"[+-]\d+", prompt.text)
        assert value < 50
        assert len(steps) in (3, 4)
        for step in steps:
            assert 1 <= abs(int(step)) <= 30
            value += int(step)
            assert 0 <= value <= 80
        assert made.verify(prompt, demonstration(prompt, rng, clean=True, wrong_share=0.3), True).passed


def test_the_harder_set_is_longer_distinct_and_changes_nothing_else(tokenizer: Any) -> None:
    plain = ArithmeticSpec(training_prompts=50, held_out_prompts=20)
    both = Arithmetic(plain.model_copy(update={"harder": Harder(operands=(6, 8), prompts=30)}), tokenizer)
    assert both.held_out == ("held_out", "harder")
    easy = Arithmetic(plain, tokenizer)
    assert all(both.prompts(split) == easy.prompts(split) for split in (TRAIN, "held_out"))
    texts = [prompt.text for split in (TRAIN, *both.held_out) for prompt in both.prompts(split)]
    assert len(set(texts)) == len(texts) == 100
    assert all(6 <= len(re.findall(r"[+-]", prompt.text)) <= 8 for prompt in both.prompts("harder"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operands": (6, 2)}, "operands must be fewest and most, not 6 and 2"),
        ({"harder": {"operands": (8, 7)}}, "harder.operands must be fewest and most"),
        ({"largest": 40, "top": 50}, "top must be at least"),
        ({"start": 60, "top": 50}, "top must be at least"),
    ],
)
def test_impossible_difficulty_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ArithmeticSpec(**settings)


def test_too_few_distinct_problems_are_an_error_and_not_an_endless_search(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="distinct problems cannot be found"):
        Arithmetic(ArithmeticSpec(operands=(1, 1), largest=1, start=1), tokenizer)


def test_specs_have_the_documented_defaults(tmp_path: Path) -> None:
    assert isinstance(math_spec(tmp_path), MathSpec)
    assert isinstance(code_spec(tmp_path), CodeSpec)
    assert 1 <= math_spec(tmp_path).workers <= 4
