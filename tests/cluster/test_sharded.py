"""The sharded learner on two gloo ranks: the same step as one process, whoever computes what; and its state, whole or not at all.

Functions without `test_` run on the ranks.
"""

import math
import resource
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cluster.gloo import Ranks
from tests.trainer.learn_cases import TUNABLES, scored
from trainer.checkpoint.shards import StoredShards
from trainer.checkpoint.store import CheckpointError
from trainer.learn import LearnResult
from trainer.learn.batch import assemble
from trainer.learn.conversion import shard
from trainer.learn.learner import PlainLearner
from trainer.learn.noise_scale import FEWEST
from trainer.learn.sharded import ShardedLearner
from trainer.model import make_tiny
from trainer.settings import Loss, OptimizerSpec, Precision, TinyModel
from trainer.tasks.tokenizer import character_tokenizer
from trainer.types import ScoredGroup

SPEC = OptimizerSpec(lr=1e-2, eps=1e-8, warmup_steps=3, tokens_per_micro_batch=24)
STEPS = 5


def model(kind: str = "qwen3") -> Any:
    shape = TinyModel(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=48)
    if kind == "qwen3":
        return make_tiny(shape, character_tokenizer(), seed=3).eval()
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(character_tokenizer()), **sizes)).eval()


def batch(step: int) -> list[ScoredGroup]:
    """Of all sizes; odd numbers of everything."""
    return [
        scored([1.0, -1.0, -1.0], [3 + step, 9, 5], ordinal=step),
        scored([1.0, 1.0, -1.0], [7, 2, 4 + step], behaviour=-6.0, ordinal=5 + step),
        scored([1.0, -1.0], [30, 2], mask=lambda t: t != 1, ordinal=9),
        scored([1.0, 1.0], [4, 4], ordinal=11),
    ]


def whole(learner: ShardedLearner) -> dict[str, Tensor]:
    """All weights, on rank 0."""
    return {name: tensor.clone() for name, tensor in learner.weights() if tensor.device.type != "meta"}


def shards(learner: ShardedLearner) -> dict[str, Tensor]:
    """Everything that is in force on this rank."""
    state = learner._state()
    return {name: (t.to_local() if hasattr(t, "to_local") else t).detach().clone() for name, t in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(result: LearnResult) -> dict[str, float]:
    assert not result.skipped
    return {name: value for name, value in vars(result).items() if isinstance(value, int | float)}


def train(
    steps: int, loss: Loss, precision: Precision, kind: str, recompute: bool = False
) -> tuple[list[LearnResult], dict[str, Tensor] | None]:
    learner = ShardedLearner(model(kind), SPEC.model_copy(update={"recompute": recompute}), loss, precision)
    results = [learner.step(step, batch(step), TUNABLES) for step in range(1, steps + 1)]
    return results, whole(learner)


@pytest.mark.parametrize(
    ("loss", "kind"), [(Loss(ratio_max=3.0), "qwen3"), (Loss(kind="gspo", aggregation="sample"), "llama")]
)
def test_two_ranks_take_the_steps_of_one_process(ranks: Ranks, loss: Loss, kind: str) -> None:
    plain = PlainLearner(model(kind), SPEC, loss)
    expected = [plain.step(step, batch(step), TUNABLES) for step in range(1, STEPS + 1)]
    (results, weights), (others, _) = ranks(train, STEPS, loss, Precision(), kind)
    for mine, other, theirs in zip(results, others, expected, strict=True):
        assert repr(mine) == repr(other)  # every rank says the same, to the bit
        assert mine.trained_tokens == theirs.trained_tokens > 0
        assert numbers(mine) == pytest.approx(numbers(theirs), rel=1e-4, abs=1e-6, nan_ok=True)
    assert results[-1].clipped_ratio > 0 or loss.kind != "cispo"
    assert weights is not None
    assert weights.keys() == plain.model.state_dict().keys()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_recomputed_activations_change_no_bit(ranks: Ranks, kind: str) -> None:
    for precision in (Precision(), Precision(dtype="bfloat16")):
        (kept, weights), _ = ranks(train, 2, Loss(), precision, kind)
        (again, recomputed), _ = ranks(train, 2, Loss(), precision, kind, True)
        assert repr(again) == repr(kept)
        assert weights is not None
        assert recomputed is not None
        assert same(weights, recomputed)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_one_rank_takes_the_steps_of_one_process_to_the_bit(alone: Ranks, kind: str) -> None:
    plain = PlainLearner(model(kind), SPEC)
    expected = [plain.step(step, batch(step), TUNABLES) for step in range(1, STEPS + 1)]
    [(results, weights)] = alone(train, STEPS, Loss(), Precision(), kind)
    assert repr(results) == repr(expected)
    assert weights is not None
    assert same(weights, dict(plain.model.state_dict()))


ALIKE = [scored([1.0, -1.0], [4, 6], ordinal=n) for n in (0, 0, 0, 0, 1)]
"""Prompts whose gradients agree, so that there is a signal to measure."""


def test_the_noise_scale_is_that_of_the_whole_gradient(ranks: Ranks) -> None:
    plain = PlainLearner(model(), SPEC)
    expected = [plain.step(step, ALIKE, TUNABLES).noise_scale_prompts for step in range(1, FEWEST + 1)][-1]
    assert 0 < expected < math.inf
    assert ranks(noise_scale) == pytest.approx([expected] * 2, rel=1e-3)


def noise_scale() -> float:
    learner = ShardedLearner(model(), SPEC)
    return [learner.step(step, ALIKE, TUNABLES).noise_scale_prompts for step in range(1, FEWEST + 1)][-1]


def test_bfloat16_stays_close_and_weights_and_optimizer_are_float32(ranks: Ranks) -> None:
    precision = Precision(dtype="bfloat16")
    plain = PlainLearner(model(), SPEC, precision=precision)
    expected = [plain.step(step, batch(step), TUNABLES) for step in range(1, 4)]
    (results, weights), _ = ranks(train, 3, Loss(), precision, "qwen3")
    for mine, theirs in zip(results, expected, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=0.02)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=0.02)
    assert weights is not None
    formats = {name: tensor.dtype for name, tensor in weights.items()}
    assert formats.pop("lm_head.weight") == torch.float32  # on generators too: a rounded head is not a float32 head
    assert set(formats.values()) == {torch.bfloat16}
    assert set(ranks(formats_in_force, precision)[0]) == {torch.float32}


def formats_in_force(precision: Precision) -> list[torch.dtype]:
    """Of a model whose files are in bfloat16."""
    learner = ShardedLearner(model().bfloat16(), SPEC, precision=precision)
    layer, seen = learner.model.base_model.layers[0], []
    block = layer.forward
    layer.forward = lambda *args: (seen.append(layer.mlp.up_proj.weight.dtype), block(*args))[1]
    assert not learner.step(1, batch(1), TUNABLES).skipped
    assert set(seen) == {torch.bfloat16}  # gathered for its products
    return [tensor.dtype for tensor in learner._state().values()]


ONE = [replace(scored([1.0, -1.0], [3, 0]))]
"""One sequence with a token to learn from, for two ranks."""


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_rank_without_a_sequence_keeps_the_others_company(ranks: Ranks, kind: str) -> None:
    plain = PlainLearner(model(kind), SPEC)
    expected = plain.step(5, ONE, TUNABLES)
    for result, weights, owned in ranks(train_one, kind):
        assert owned in (0, 1)
        assert numbers(result) == pytest.approx(numbers(expected), rel=1e-4, nan_ok=True)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, plain.model.state_dict()[name], rtol=1e-4, atol=2e-5)


def train_one(kind: str) -> tuple[LearnResult, dict[str, Tensor], int]:
    learner = ShardedLearner(model(kind), SPEC)
    assembled = assemble(ONE, Loss())
    assert assembled is not None
    owned = int((assembled[0].owners(2) == dist.get_rank()).sum())
    return learner.step(5, ONE, TUNABLES), whole(learner), owned


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=5), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(1, 90),
)
def test_every_sequence_is_computed_once_and_every_rank_makes_as_many_passes(
    lengths: list[list[int]], ranks: int, budget: int
) -> None:
    groups = [scored([1.0] + [-1.0] * (len(group) - 1), group, ordinal=n) for n, group in enumerate(lengths)]
    assembled = assemble(groups, Loss())
    assert assembled is not None
    whole_batch = assembled[0]
    parts = [list(whole_batch.micro_batches(budget, rank, ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    real = [[micro for micro in part if bool(micro.carries.any())] for part in parts]
    rows = sorted(
        (int(g), int(n)) for part in real for micro in part for g, n in zip(micro.group, micro.length, strict=True)
    )
    assert rows == sorted(zip(whole_batch.group.tolist(), whole_batch.length.tolist(), strict=True))
    assert sum(int(micro.carries.sum()) for part in parts for micro in part) == int(whole_batch.carries.sum())
    tokens = [sum(int(micro.length.sum()) for micro in part) for part in real]
    fair = int(whole_batch.length.sum()) / ranks
    assert all(abs(each - fair) <= int(whole_batch.length.max()) for each in tokens)


@pytest.mark.parametrize("spoiled", [0, 1])
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(ranks: Ranks, spoiled: int) -> None:
    for result, before, after in ranks(train_spoiled, spoiled):
        assert result.skipped == "nonfinite"
        assert "loss" in result.nonfinite
        assert result.trained_tokens == 0
        assert same(before, after)


def train_spoiled(rank: int) -> tuple[LearnResult, dict[str, Tensor], dict[str, Tensor]]:
    """The behaviour of one sequence of that rank is not a number."""
    groups = [scored([1.0, -1.0], [6, 6], ordinal=0), scored([1.0, -1.0], [6, 6], ordinal=7)]
    groups[rank] = scored([1.0, -1.0], [6, 6], behaviour=math.nan, ordinal=groups[rank].item.ordinal)
    learner = ShardedLearner(model(), SPEC)
    before = shards(learner)
    return learner.step(1, groups, TUNABLES), before, shards(learner)


def test_copies_in_memory_and_on_disk_go_on_bit_exactly(ranks: Ranks, tmp_path: Path) -> None:
    for outcome in ranks(go_back, tmp_path):
        assert outcome == {"memory": True, "disk": True, "twice": True, "kept": {"other"}}


def go_back(directory: Path) -> dict[str, Any]:
    learner = ShardedLearner(model(), SPEC)
    learner.step(1, batch(1), TUNABLES)
    learner.keep("here")
    learner.write(directory)

    def onward() -> tuple[list[LearnResult], dict[str, Tensor]]:
        return [learner.step(step, batch(step), TUNABLES) for step in (2, 3)], shards(learner)

    def again(source: Path | str) -> bool:
        learner.stage(source)
        learner.commit()
        results, state = onward()
        return [replace(r, noise_scale_prompts=0) for r in results] == clean and same(state, first[1])

    first = onward()
    clean = [replace(r, noise_scale_prompts=0) for r in first[0]]
    outcome: dict[str, Any] = {"memory": again("here"), "disk": again(directory), "twice": again("here")}
    learner.keep("other")
    for name in ("here", "here"):
        learner.release(name)
    return {**outcome, "kept": set(learner.kept)}


def test_staging_changes_nothing_until_it_is_committed(ranks: Ranks, tmp_path: Path) -> None:
    assert ranks(stage_only, tmp_path) == [True, True]


def stage_only(directory: Path) -> bool:
    learner = ShardedLearner(model(), SPEC)
    learner.write(directory)
    learner.step(1, batch(1), TUNABLES)
    before = shards(learner)
    learner.stage(directory)
    unchanged = same(before, shards(learner))
    learner.discard()
    with pytest.raises(RuntimeError, match="nothing is staged"):
        learner.commit()
    learner.step(2, batch(2), TUNABLES)
    return unchanged


@pytest.mark.parametrize("damage", ["missing", "other model", "no directory"])
def test_what_cannot_be_staged_is_refused_on_every_rank_and_changes_nothing(
    ranks: Ranks, tmp_path: Path, damage: str
) -> None:
    for refused, unchanged in ranks(stage_damaged, tmp_path / "c", damage):
        assert refused
        assert unchanged


def stage_damaged(directory: Path, damage: str) -> tuple[str, bool]:
    learner = ShardedLearner(model(), SPEC)
    saved = ShardedLearner(model("llama"), SPEC) if damage == "other model" else learner
    if damage != "no directory":
        saved.write(directory)
        learner.step(1, batch(1), TUNABLES)
    dist.barrier()
    if damage == "missing" and dist.get_rank() == 0:
        next(directory.glob("__1_*")).unlink()
    dist.barrier()
    before = shards(learner)
    try:
        learner.stage(directory)
    except CheckpointError as error:
        return str(error), same(before, shards(learner))
    return "", True


def test_two_ranks_write_and_one_reads_and_the_other_way_round(ranks: Ranks, alone: Ranks, tmp_path: Path) -> None:
    first = ranks(write_after_steps, tmp_path / "two", 2)[0]
    [(resharded, weights)] = alone(read_and_go_on, tmp_path / "two", tmp_path / "one")
    assert same(weights, first)
    (back, again), _ = ranks(read_and_go_on, tmp_path / "one", tmp_path / "back")
    plain = PlainLearner(model(), SPEC)
    expected = [plain.step(step, batch(step), TUNABLES) for step in range(1, 5)]
    assert (resharded.loss, back.loss) == pytest.approx((expected[2].loss, expected[3].loss), rel=1e-4)
    assert not same(again, first)


def write_after_steps(directory: Path, steps: int) -> dict[str, Tensor]:
    learner = ShardedLearner(model(), SPEC)
    for step in range(1, steps + 1):
        learner.step(step, batch(step), TUNABLES)
    learner.write(directory)
    return whole(learner)


def read_and_go_on(source: Path, target: Path) -> tuple[LearnResult, dict[str, Tensor]]:
    """The weights as they were read, and the step after them, which is written."""
    learner = ShardedLearner(model(), SPEC)
    learner.stage(source)
    learner.commit()
    weights = whole(learner)
    step = 3 if source.name == "two" else 4
    result = learner.step(step, batch(step), TUNABLES)
    learner.write(target)
    return result, weights


def test_what_ranks_wrote_goes_on_in_one_process_and_the_other_way_round(ranks: Ranks, tmp_path: Path) -> None:
    ranks(write_after_steps, tmp_path / "two", 2)
    one = PlainLearner(model(), SPEC)
    one.stage({"shards": StoredShards(tmp_path / "two"), "base_lr": 0.5})
    one.load_state_dict({"shards": StoredShards(tmp_path / "two"), "base_lr": 0.5})
    assert one.base_lr == 0.5
    one.base_lr = SPEC.lr
    plain = PlainLearner(model(), SPEC)
    expected = [plain.step(step, batch(step), TUNABLES) for step in range(1, 5)]
    assert numbers(one.step(3, batch(3), TUNABLES)) == pytest.approx(numbers(expected[2]), rel=1e-4, nan_ok=True)
    shard(one.state_dict(), made(tmp_path / "one"))
    result, _ = ranks(read_and_go_on, tmp_path / "one", tmp_path / "back")[0]
    assert result.loss == pytest.approx(expected[3].loss, rel=1e-4)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\..* is missing in the checkpoint"):
        PlainLearner(deeper(), SPEC).stage({"shards": StoredShards(tmp_path / "two"), "base_lr": 0.5})


def test_a_state_before_the_first_step_and_a_tied_head_can_be_sharded(tmp_path: Path) -> None:
    tied = model()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    learner = PlainLearner(tied, SPEC)
    shard(learner.state_dict(), made(tmp_path / "fresh"))
    learner.step(1, batch(1), TUNABLES)
    state = deepcopy(learner.state_dict())
    shard(state, made(tmp_path / "stepped"))
    for name in ("fresh", "stepped"):
        learner.load_state_dict({"shards": StoredShards(tmp_path / name), "base_lr": 1e-2})
        steps = {float(own["step"]) for own in learner.state_dict()["optimizer"]["state"].values()}
        assert steps == {0.0 if name == "fresh" else 1.0}
    for name, tensor in learner.state_dict()["model"].items():
        assert torch.equal(tensor, state["model"][name])


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def deeper() -> Any:
    shape = TinyModel(hidden=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48)
    return make_tiny(shape, character_tokenizer(), seed=3)


def test_a_disk_that_is_full_for_one_rank_is_an_error_on_all_and_training_goes_on(ranks: Ranks, tmp_path: Path) -> None:
    for error, result in ranks(write_without_room, tmp_path):
        assert error == "rank 1: [Errno 27] File too large"
        assert not result.skipped


def write_without_room(directory: Path) -> tuple[str, LearnResult]:
    learner, error = ShardedLearner(model(), SPEC), ""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        learner.write(directory)
    except CheckpointError as refused:
        error = str(refused)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return error, learner.step(1, batch(1), TUNABLES)


def test_compiling_is_refused_in_words(ranks: Ranks) -> None:
    assert ranks(compiled) == ["optimizer.compile is not supported with shards; set it to false"] * 2


def compiled() -> str:
    try:
        ShardedLearner(model(), SPEC.model_copy(update={"compile": True}))
    except ValueError as error:
        return str(error)
    return ""
