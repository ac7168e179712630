"""`scalerl plan`: counts against real models, figures that must move one way only, and refusals in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config
from typer.testing import CliRunner

from controlplane.contract.yamlfile import FileError
from trainer.checkpoint.health import Trial
from trainer.checkpoint.store import CheckpointStore, Content
from trainer.learn.batch import Batch
from trainer.learn.forward import Forward
from trainer.learn.learner import PlainLearner
from trainer.model import make_tiny
from trainer.plan.assumptions import corners, parse
from trainer.plan.balance import best_split, fits, splits
from trainer.plan.command import command
from trainer.plan.estimate import Plan, Split, checkpoint_bytes, plan
from trainer.plan.hardware import GPUS
from trainer.plan.memory import activations_per_token, generator_memory, learner_memory
from trainer.plan.shape import SHIPPED, Shape, read_shape, shape_of, tiny_shape
from trainer.plan.source import load, split_in, split_of
from trainer.plan.warnings import fewest_ranks, warnings
from trainer.recipe import Recipe
from trainer.settings import OptimizerSpec, Precision, TinyModel
from trainer.tasks.tokenizer import character_tokenizer

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
}
TINY: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3"},
    "qwen3, tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "num_attention_heads": 4, "head_dim": None},
    "llama": {"model_type": "llama"},
    "llama with bias": {"model_type": "llama", "attention_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": 64},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    },
    "llama4": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 160,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 128,
    },
}
SHAPES = sorted(path.name for path in SHIPPED.iterdir())
RECIPE, _ = load("scalerl", "qwen3-8b", [])
EIGHT = read_shape(SHIPPED / "qwen3-8b")
SCOUT = read_shape(SHIPPED / "llama4-scout-17bx16")
H100 = GPUS["h100"]
CORNERS = corners({})


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def planned(recipe: Recipe = RECIPE, shape: Shape = EIGHT, split: Split | None = None, gpu: str = "h100") -> Plan:
    return plan(recipe, shape, GPUS[gpu], split or Split(16, 64), CORNERS, "ib400", True)


def changed(**keys: Any) -> Recipe:
    return Recipe.model_validate(
        {**RECIPE.model_dump(), **{k: {**RECIPE.model_dump()[k], **v} for k, v in keys.items()}}
    )


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_a_real_model(name: str) -> None:
    config = {key: value for key, value in {**BASE, **TINY[name]}.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    shape = shape_of(config, name)
    assert shape.total == parameters(model)
    # A file that transformers wrote, with its own spelling of the keys and every default in it, says the same.
    assert shape_of(json.loads(model.config.to_json_string(use_diff=False)), name) == shape


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_shape_counts_as_the_whole_model_would(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHIPPED / name))
    assert read_shape(SHIPPED / name).total == parameters(model)


def test_shipped_shapes_are_the_models_that_their_names_promise() -> None:
    assert EIGHT.total == pytest.approx(8.2e9, rel=0.01)
    assert SCOUT.active == pytest.approx(17e9, rel=0.02)
    assert (SCOUT.experts, SCOUT.chosen, SCOUT.local_layers) == (16, 1, 36)


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_choose() -> None:
    shape = shape_of({**BASE, **TINY["mixtral"]}, "mixtral")
    assert shape.total - shape.active == 5 * 2 * 3 * 64 * 96  # layers, experts not chosen, three matrices


def test_flops_are_what_torch_counts() -> None:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**BASE, model_type="qwen3"), attn_implementation="eager"
    )
    shape, tokens = shape_of({**BASE, "model_type": "qwen3"}, "qwen3"), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(tokens).unsqueeze(0))
    norms = 2 * shape.layers * (2 * shape.hidden + 2 * shape.head_dim)  # body_flops takes norms for products
    ours = shape.body_flops - norms + shape.head_flops + shape.score_flops(tokens)
    assert counter.get_total_flops() == pytest.approx(tokens * ours, rel=0.005)  # eager computes masked scores, too


def test_kv_cache_of_an_8b_is_144_kib_per_token() -> None:
    assert EIGHT.kv_values * 2 == 2 * 36 * 8 * 128 * 2 == 144 * 1024
    room = generator_memory(EIGHT, H100, 1, 4096, 16_384, 2, CORNERS[0])
    assert room.fitting_longest == pytest.approx((80e9 * 0.88 - 2 * EIGHT.total) / (16_384 * 147_456))


def test_local_attention_looks_back_no_further_than_its_window() -> None:
    assert SCOUT.kv_read(20_000) == 2 * 8 * 128 * (12 * 20_000 + 36 * 8192)
    assert SCOUT.kv_read(100) == 100 * SCOUT.kv_values


def test_a_checkpoint_has_the_planned_size(tmp_path: Path) -> None:
    learner = PlainLearner(make_tiny(TinyModel(), character_tokenizer(), 0), OptimizerSpec())
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner._optimizer.step()
    state = learner.state_dict()
    saved = CheckpointStore(tmp_path).save(1, 0, 1, Content(state, {}), Trial(1, 0.5, None))
    assert saved.size_bytes == pytest.approx(
        checkpoint_bytes(tiny_shape(TinyModel(), len(character_tokenizer()))), rel=0.02
    )


@pytest.mark.parametrize(("format", "bytes_"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])  # the lean pass, and that of transformers
def test_activations_are_what_autograd_keeps(format: Any, bytes_: int, kind: str) -> None:
    config = {**BASE, "model_type": kind, "hidden_size": 128, "intermediate_size": 384, "head_dim": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation="sdpa").float().eval()
    rows, width = 2, 257
    carries = torch.zeros(rows, width, dtype=torch.bool)
    carries[:, -1] = True  # next to no logits
    whole, none = torch.full((rows,), width), torch.zeros(rows)
    batch = Batch(
        torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width), carries, torch.arange(rows),
        torch.ones(rows, dtype=torch.long), whole, none, none, torch.ones(rows),
    )  # fmt: skip
    sizes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in sizes:  # weights, and their copies under autocast
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = Forward(model, Precision(dtype=format))(batch)  # kept, or an address would be used again
    planned = activations_per_token(shape_of(config, kind), bytes_, recompute=False)
    assert sum(kept.values()) / (rows * (width - 1)) == pytest.approx(planned, rel=0.15)
    assert len(alive) == 2


@given(
    ranks=st.integers(1, 200),
    more=st.integers(1, 200),
    shape=st.sampled_from([EIGHT, SCOUT]),
    dtype=st.sampled_from([2, 4]),
)
def test_more_gpus_never_raise_the_memory_of_one(ranks: int, more: int, shape: Shape, dtype: int) -> None:
    few, many = (
        learner_memory(shape, H100, n, 20_000, dtype, 4, True, CORNERS[0]).total for n in (ranks, ranks + more)
    )
    assert many <= few
    weights = [generator_memory(shape, H100, n, 8000, 16_000, dtype, CORNERS[0]).weights for n in (ranks, ranks + more)]
    assert weights[1] <= weights[0]


@settings(max_examples=60)
@given(
    length=st.integers(64, 60_000),
    longer=st.integers(1, 60_000),
    learners=st.integers(1, 64),
    generators=st.integers(1, 64),
    mode=st.sampled_from(["pipeline", "ppo_off_policy"]),
)
def test_longer_completions_never_take_fewer_gpu_hours(
    length: int, longer: int, learners: int, generators: int, mode: str
) -> None:
    hours = []
    for tokens in (length, length + longer):
        recipe = changed(
            length={"max_new_tokens": tokens},
            staleness={"mode": mode},
            guard_rails={"bounds": {"max_new_tokens": {"min": 1, "max": 200_000}}},
        )
        found = planned(recipe, split=Split(learners, generators))
        hours.append([corner.gpu_hours(found.split.gpus, recipe.steps) for corner in (found.fast, found.slow)])
    assert hours[1][0] >= hours[0][0]
    assert hours[1][1] >= hours[0][1]


@pytest.mark.parametrize("shape", [EIGHT, SCOUT], ids=lambda shape: shape.name)
def test_the_slow_corner_is_the_slower_one(shape: Shape) -> None:
    found = planned(shape=shape)
    assert found.fast.step_seconds < found.slow.step_seconds
    assert found.fast.learner_memory.total <= found.slow.learner_memory.total
    assert found.fast.evaluations.seconds < found.slow.evaluations.seconds


def test_one_assumption_moves_the_plan_only_the_way_it_should() -> None:
    def step(pairs: list[str]) -> float:
        return plan(RECIPE, EIGHT, H100, Split(16, 64), corners(parse(pairs)), "ib400", True).slow.step_seconds

    assert step(["mfu=0.5"]) < step([]) < step(["mfu=0.1"])
    assert step(["mean_length=0.9"]) > step([])
    assert step(["storage=1e6"]) == step([])


def test_without_recomputation_the_learner_needs_far_more_and_less_time() -> None:
    kept, again = (plan(RECIPE, EIGHT, H100, Split(16, 64), CORNERS, "ib400", recompute) for recompute in (False, True))
    assert kept.slow.learner_memory.activations > 5 * again.slow.learner_memory.activations
    assert kept.slow.learning.body == pytest.approx(again.slow.learning.body * 3 / 4)


def test_a_recipe_that_keeps_activations_is_told_what_would_help() -> None:
    notes = warnings(plan(RECIPE, EIGHT, H100, Split(16, 64), CORNERS, "ib400", False), None)
    assert any("optimizer.recompute: true" in note for note in notes)


def test_turns_take_the_sum_and_a_pipeline_the_longer_side() -> None:
    pipeline, turns = planned(), planned(changed(staleness={"mode": "ppo_off_policy"}))
    for corner in (pipeline.slow, pipeline.fast):
        assert corner.step_seconds == max(corner.generation_seconds, corner.learning.seconds) + corner.publish_seconds
    slow = turns.slow
    assert slow.step_seconds == slow.generation_seconds + slow.learning.seconds + slow.publish_seconds


def test_the_best_split_fits_and_no_other_that_fits_is_faster() -> None:
    best = best_split(RECIPE, EIGHT, GPUS["h200"], 24, 1, CORNERS, "ib400", True)
    assert best is not None
    assert fits(best)
    assert best.split.gpus == 24
    for split in splits(24, 1):
        other = planned(split=split, gpu="h200")
        if fits(other):
            assert other.slow.step_seconds + other.fast.step_seconds >= best.slow.step_seconds + best.fast.step_seconds


def test_what_does_not_fit_is_said_with_the_number_of_ranks_that_would_do() -> None:
    found = planned(shape=SCOUT, split=Split(16, 8, 8), gpu="gb200")
    notes = warnings(found, None)
    assert notes[0].startswith("DOES NOT FIT: a learner GPU needs")
    enough = fewest_ranks(found)
    assert enough is not None
    assert any(f"{enough} ranks would do" in note for note in notes)
    bounded = changed(optimizer={"tokens_per_micro_batch": 1})
    assert planned(bounded, SCOUT, Split(enough, 8, 8), "gb200").slow.learner_memory.total <= GPUS["gb200"].memory
    assert planned(bounded, SCOUT, Split(enough - 1, 8, 8), "gb200").slow.learner_memory.total > GPUS["gb200"].memory


@pytest.mark.parametrize(("name", "gpu"), [("scalerl-8b", "h100"), ("scalerl-17bx16", "gb200")])
def test_a_shipped_recipe_with_a_shape_and_a_split_fits_its_80_gpus(name: str, gpu: str) -> None:
    recipe, shape = load(name, "", [])
    split = split_in(recipe)
    assert split is not None
    assert split.gpus == 80
    assert fits(planned(recipe, shape, split, gpu))


def test_the_paper_s_split_does_not_fit_the_experts() -> None:
    recipe, shape = load("scalerl-17bx16", "", [])
    assert not fits(planned(recipe, shape, Split(16, 32, 2), "gb200"))
    assert best_split(recipe, shape, H100, 80, 8, CORNERS, "ib400", True) is not None
    assert not any(fits(planned(recipe, shape, split, "h100")) for split in splits(80, 8))


PUBLISHED = [  # GPU-hours of a step on 80 GB200 (docs/plan.md), all inferred from the paper's figures
    (
        "scalerl",
        "qwen3-8b",
        {"precision.learner_head": "model", "precision.generator_head": "model"},
        Split(16, 64),
        1.47,
    ),
    ("scalerl", "qwen3-8b", {}, Split(16, 64), 2.57),
    ("scalerl-34k", "qwen3-8b", {}, Split(16, 64), 10.7),
    ("scalerl", "llama4-scout-17bx16", {}, Split(16, 32, 2), 6.2),
]


@pytest.mark.parametrize(("name", "model", "keys", "split", "hours"), PUBLISHED)
def test_published_steps_lie_within_the_ranges(
    name: str, model: str, keys: dict[str, str], split: Split, hours: float
) -> None:
    recipe, shape = load(name, model, [f"{key}={value}" for key, value in keys.items()])
    found = planned(recipe, shape, split, "gb200")
    fast, slow = (corner.step_seconds * 80 / 3600 for corner in (found.fast, found.slow))
    assert fast <= hours <= slow


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["mfu"], "give NAME=VALUE"),
        (["speed=3"], "no such assumption; there are mean_length"),
        (["mfu=fast"], "'fast' is not a number"),
        (["mfu=0.2..1.5"], "must be within 0.01 and 1"),
        (["mfu=nan"], "must be within"),
    ],
)
def test_a_wrong_assumption_is_one_sentence(pairs: list[str], message: str) -> None:
    with pytest.raises(FileError, match=message):
        parse(pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [((8, 8, 0, 1), "at least one learner rank"), ((8, 3, 0, 2), "no multiple of the 2"), ((8, 2, 2, 1), "are 4")],
)
def test_a_split_that_contradicts_itself_is_refused(options: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(FileError, match=message):
        split_of(*options)


def test_an_unknown_architecture_is_refused_rather_than_guessed() -> None:
    with pytest.raises(FileError, match="model_type is 'mamba'; known are llama"):
        shape_of({"model_type": "mamba"}, "x")
    with pytest.raises(FileError, match="has no hidden_size, which a qwen3 model needs"):
        shape_of({key: value for key, value in BASE.items() if key != "hidden_size"} | {"model_type": "qwen3"}, "x")


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_the_command_shows_a_table_and_says_that_it_was_computed(app: typer.Typer) -> None:
    result = CliRunner().invoke(
        app,
        ["scalerl", "--model", "qwen3-8b", "--learners", "16", "--generators", "64", "--price", "2"],
        env={"COLUMNS": "120"},
    )
    assert result.exit_code == 0
    for words in (
        "Computed, nothing was run",
        "144 KiB",
        "GPU-hours",
        "at 2 per GPU-hour",
        "who waits",
        "DOES NOT FIT",
    ):
        assert words in result.output


def test_the_command_gives_the_same_plan_as_json(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["tiny", "--gpus", "2", "--json"])
    found = json.loads(result.output)
    assert found["shape"]["parameters"] == parameters(make_tiny(TinyModel(), character_tokenizer(), 0))
    assert found["split"] == {"learners": 1, "generators": 1, "gpus_per_generator": 1, "gpus": 2}
    assert 0 < found["fast"]["gpu_hours"] < found["slow"]["gpu_hours"]
    assert found["slow"]["price"] is None


def test_a_template_without_its_model_says_what_to_give(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["scalerl-lecture"])
    assert result.exit_code == 2
    assert "names no model.shape; give --model" in result.stderr
    assert "known" not in result.output


def test_a_real_model_directory_is_read_from_its_config(app: typer.Typer, tmp_path: Path) -> None:
    Qwen3Config(**BASE).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["scalerl", "--set", f"model.path={tmp_path}", "--gpus", "2", "--json"])
    assert json.loads(result.output)["shape"]["hidden"] == 64
