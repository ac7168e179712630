"""The arithmetic task, its tokenizer and the warm start."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.model import load_model, load_tokenizer
from trainer.settings import TinyModel, WarmStart
from trainer.tasks.arithmetic import Arithmetic, ArithmeticSpec, demonstration
from trainer.types import Prompt
from trainer.warmstart import warm_started


@pytest.fixture(scope="module")
def task(tokenizer: Any) -> Arithmetic:
    return Arithmetic(ArithmeticSpec(), tokenizer)


def test_held_out_prompts_are_never_trained_and_the_task_is_the_same_each_time(
    task: Arithmetic, tokenizer: Any
) -> None:
    train = {prompt.text for prompt in task.prompts("train")}
    held_out = {prompt.text for prompt in task.prompts("held_out")}
    assert (len(train), len(held_out)) == (2000, 1000)
    assert not train & held_out
    again = Arithmetic(ArithmeticSpec(), tokenizer)
    assert again.prompts("train") == task.prompts("train")
    assert Arithmetic(ArithmeticSpec(seed=1), tokenizer).prompts("train") != task.prompts("train")


def test_answers_are_right_and_values_stay_in_range(task: Arithmetic) -> None:
    for prompt in (*task.prompts("train"), *task.prompts("held_out")):
        value = int(prompt.text[:2])
        for operation in re.findall(r"[+-]\d", prompt.text):
            value += int(operation)
            assert 0 <= value <= 99
        assert f"{value:02d}" == prompt.answer


def test_the_verifier_wants_format_answer_and_a_stop(task: Arithmetic) -> None:
    prompt = Prompt(0, "07+3-2=", (), "08")
    right = "<think>07+3=10;10-2=08;</think><answer>08</answer>"
    assert task.verify(prompt, right, finished=True).passed
    assert task.verify(prompt, right, finished=True).reward == 1.0
    for text, finished in (
        (right, False),
        (right.replace("<answer>08", "<answer>09"), True),
        (right + "0", True),
        ("08", True),
        ("<think><think></think><answer>08</answer>", True),
        ("", True),
    ):
        assert task.verify(prompt, text, finished).reward == -1.0


def test_clean_demonstrations_pass_and_fit_the_limits_of_the_tiny_recipe(task: Arithmetic, tokenizer: Any) -> None:
    rng = random.Random(0)
    for prompt in task.prompts("train")[:300]:
        text = demonstration(prompt, rng, clean=True, wrong_share=0.3)
        assert task.verify(prompt, text, True).passed
        assert len(tokenizer.encode(text.split("</think>")[0])) <= 49
        assert len(tokenizer.encode(text)) + 1 <= 64


def test_the_tokenizer_keeps_text_and_tags(tokenizer: Any) -> None:
    text = "07+3-2=<think>07+3=10;</think><answer>10</answer>"
    ids = tokenizer.encode(text)
    assert len(tokenizer) == 64
    assert len(ids) == 7 + 1 + 8 + 1 + 1 + 2 + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_warm_start_is_an_ordinary_directory_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape, spec = TinyModel(hidden=16, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=16), WarmStart(steps=2)
    seen: list[int] = []
    path = warm_started(shape, ArithmeticSpec(), spec, lambda step, _: seen.append(step))
    assert path.parent == tmp_path / "scalerl"
    assert load_model(path).config.hidden_size == 16
    assert load_tokenizer(path).decode(load_tokenizer(path).encode("07+3=")) == "07+3="
    assert warm_started(shape, ArithmeticSpec(), spec, lambda step, _: seen.append(step)) == path
    assert seen == [1, 2]
    assert warm_started(shape, ArithmeticSpec(), WarmStart(steps=1)) != path


def test_an_interrupted_warm_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    shape = TinyModel(hidden=16, layers=1, heads=1, kv_heads=1, head_dim=8, mlp=16)
    with pytest.raises(KeyboardInterrupt):
        warm_started(shape, ArithmeticSpec(), WarmStart(steps=1))
    assert list((tmp_path / "scalerl").iterdir()) == []
