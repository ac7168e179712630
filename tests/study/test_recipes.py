"""The shipped recipes: complete once model and data are named, and what they say about themselves is true."""

import re
from pathlib import Path

import pytest

from controlplane.contract.yamlfile import FileError
from controlplane.study.spec import Study, load_study
from controlplane.study.study import settings_of
from tests.study.test_study import options
from trainer.recipe import SHIPPED, Recipe, find_recipe, load_recipe

TEMPLATES = sorted(file.stem for file in SHIPPED.glob("*.yaml") if file.stem != "tiny")
NUMBER = re.compile(r"^\s+[a-z_0-9]+:\s+(-?[0-9][^#]*|true|false|null)\s*(#.*)?$")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def complete(name: str, model: str) -> Recipe:
    return load_recipe(find_recipe(name), {"model.path": model})


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_shipped_recipe_loads_once_its_model_is_named(name: str, model: str) -> None:
    recipe = complete(name, model)
    assert recipe.name == name
    assert recipe.batch.samples_per_prompt == 16


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_a_model_says_where_the_model_goes(name: str) -> None:
    with pytest.raises(FileError, match=rf"{name}\.yaml:\d+: model\.path: /path/to/model is not a model directory"):
        load_recipe(find_recipe(name))


def test_a_mistake_in_an_override_is_blamed_on_the_override_and_one_in_the_file_on_its_line(model: str) -> None:
    with pytest.raises(FileError, match=r"^--set optimizer\.lr=-3: optimizer\.lr: .*greater than 0"):
        load_recipe(find_recipe("scalerl"), {"model.path": model, "optimizer.lr": "-3"})
    with pytest.raises(FileError, match=r"scalerl\.yaml:\d+: rollout\.slots: must be at least"):
        load_recipe(find_recipe("scalerl"), {"model.path": model, "batch.samples_per_prompt": "4000"})


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_number_of_a_template_names_its_source(name: str) -> None:
    lines = (SHIPPED / f"{name}.yaml").read_text().splitlines()
    bare = [line for line in lines if (found := NUMBER.match(line)) and not found[2]]
    assert bare == []


def test_scalerl_is_the_paper_s(model: str) -> None:
    recipe = complete("scalerl", model)
    assert recipe.batch.prompts_per_step * recipe.batch.samples_per_prompt == 768
    assert (recipe.loss.kind, recipe.loss.aggregation, recipe.loss.advantage) == ("cispo", "prompt", "batch")
    assert (recipe.staleness.mode, recipe.staleness.max_staleness) == ("pipeline", 8)
    assert recipe.precision.learner_head == recipe.precision.generator_head == "float32"
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.warmup_steps) == (5e-7, 1e-15, 100)
    low, high = (round(share * recipe.length.thinking_budget) for share in recipe.length.window)
    assert (low, high, recipe.length.max_new_tokens) == (10_240, 12_288, 14_336)
    assert recipe.curriculum.no_positive_resampling == 0.9


AXES = ("loss", "staleness", "precision", "curriculum", "batch", "optimizer", "length", "rollout", "evaluation")


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("grpo", {"loss", "staleness", "precision", "curriculum"}),
        ("dapo", {"loss", "staleness", "precision", "curriculum", "batch", "rollout"}),
        ("magistral", {"loss", "precision", "curriculum", "batch", "rollout"}),
        ("minimax", {"loss", "staleness", "curriculum", "batch", "rollout"}),
        ("scalerl-2048", {"batch"}),
        ("scalerl-34k", {"length", "rollout"}),
        ("scalerl-lecture", {"rollout", "optimizer", "evaluation"}),
        ("scalerl-8b", {"rollout", "optimizer", "evaluation"}),
        ("scalerl-17bx16", {"rollout", "optimizer", "evaluation"}),
    ],
)
def test_a_recipe_differs_from_scalerl_where_it_should_and_nowhere_else(
    name: str, differs: set[str], model: str
) -> None:
    base, recipe = complete("scalerl", model), complete(name, model)
    assert {axis for axis in AXES if getattr(recipe, axis) != getattr(base, axis)} == differs


@pytest.mark.parametrize("study", [load_study("loo"), load_study("prevalent")], ids=lambda s: s.name)
def test_every_variant_of_a_shipped_study_makes_a_recipe_of_its_own(study: Study, tmp_path: Path) -> None:
    made = {}
    for variant in study.variants:
        settings = settings_of(study, variant, options(tmp_path), 1)
        made[variant.name] = load_recipe(find_recipe(study.recipe), settings).model_dump(exclude={"name"}, mode="json")
    assert len({str(recipe) for recipe in made.values()}) == len(study.variants)


def test_every_leave_one_out_variant_moves_one_axis(tmp_path: Path) -> None:
    study = load_study("loo")
    recipes = {
        v.name: load_recipe(find_recipe("tiny"), settings_of(study, v, options(tmp_path), 1)) for v in study.variants
    }
    base = recipes.pop("scalerl")
    for name, recipe in recipes.items():
        moved = [axis for axis in AXES if getattr(recipe, axis) != getattr(base, axis)]
        assert len(moved) == 1, name
