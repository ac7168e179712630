"""What the tuner reads out of the record of a probe."""

from typing import Any

import pytest

from controlplane.tune.reading import compared, gain


def step(arm: str, t: int, passed: int = 1) -> dict[str, Any]:
    return {"kind": "step", "arm": arm, "t": t, "prompts": [[0, t, passed, 10]]}


BEGIN: dict[str, Any] = {"kind": "begin", "steps": 20, "arms": {"control": {}, "up": {}}}


def test_an_arm_is_compared_during_the_turns_of_control_too_until_it_is_stopped() -> None:
    record = [BEGIN, step("control", 1)]
    assert compared(record) == ""
    record += [step("up", 1), step("control", 2)]
    assert compared(record) == "up"
    record += [{"kind": "stopped", "arm": "up"}, step("control", 3)]
    assert compared(record) == ""


def test_the_gain_of_control_is_that_of_a_whole_probe_however_few_steps_it_needed() -> None:
    steps = [step("control", t, passed=t) for t in range(1, 6)]
    assert gain([BEGIN, *steps]) == pytest.approx(20 * 0.1)
    assert gain([BEGIN, *steps, step("up", 1, passed=9)]) == pytest.approx(20 * 0.1)
    assert gain([BEGIN, step("control", 1)]) == 0.0
