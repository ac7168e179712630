"""Recipe and shape to plan with. A template's model directory need not exist: a shape stands in for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from controlplane.contract.yamlfile import FileError, read_text
from trainer.plan.estimate import Split
from trainer.plan.shape import SHIPPED, Shape, read_shape, tiny_shape
from trainer.recipe import Recipe, find_recipe, load_recipe, overrides_of
from trainer.settings import ModelDirectory


def load(name: str, model: str, pairs: Sequence[str]) -> tuple[Recipe, Shape]:
    """The recipe with `--set` pairs in place, and the shape of `model`: a directory, a shipped shape, or empty for what the
    recipe names (its directory, else its shape).

    Raises:
        FileError: the recipe is wrong, or there is no shape for it.
    """
    path, overrides = find_recipe(name), overrides_of(pairs)
    directory = _directory(model) if model else _stand_in(path, overrides)
    recipe = load_recipe(path, {**overrides, "model.path": str(directory)} if directory else overrides)
    if isinstance(recipe.model, ModelDirectory):
        return recipe, read_shape(recipe.model.path)
    return recipe, tiny_shape(recipe.model, _characters())


def _directory(model: str) -> Path:
    """A model directory, or the shipped shape of that name."""
    path = Path(model)
    if path.is_dir():
        return path
    shipped = SHIPPED / model
    if not (shipped / "config.json").is_file():
        known = ", ".join(sorted(shape.name for shape in SHIPPED.iterdir()))
        raise FileError(
            f"{model}: no such model directory or shape; give a directory with config.json, or one of {known}"
        )
    return shipped


def _stand_in(path: Path, overrides: dict[str, str]) -> Path | None:
    """The shape that the recipe names, where its model directory is not there; None to take the recipe as it is."""
    try:
        data: Any = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError):
        return None  # load_recipe says what is wrong
    section = data.get("model") if isinstance(data, dict) else None
    if not isinstance(section, dict):
        return None
    directory = overrides.get("model.path", section.get("path"))
    if directory is None or (Path(str(directory)) / "config.json").is_file():
        return None
    shape = overrides.get("model.shape", section.get("shape"))
    if not shape:
        raise FileError(
            f"{path}: model.path: {directory} is not there and the recipe names no model.shape; give --model"
        )
    return _directory(str(shape))


def _characters() -> int:
    """Words of the tiny model's tokenizer."""
    from trainer.tasks.tokenizer import character_tokenizer

    return len(character_tokenizer())


def split_in(recipe: Recipe) -> Split | None:
    """The split in the recipe's section `cluster`; None where the recipe leaves it open."""
    spec = getattr(recipe, "cluster", None)
    if spec is None or "cluster" not in recipe.model_fields_set:
        return None
    return Split(spec.learners.ranks, spec.generators.max, spec.generators.gpus or 1)


def split_of(gpus: int, learners: int, generators: int, per: int) -> Split | None:
    """The split that the options name, 0 for what they leave open; None where the best is to be found.

    Raises:
        FileError: they contradict each other.
    """
    if not learners and not generators:
        return None
    if gpus and not learners:
        learners = gpus - generators * per
    elif gpus and not generators:
        generators, rest = divmod(gpus - learners, per)
        if rest and generators > 0:
            raise FileError(
                f"--gpus {gpus}: {learners} learner ranks leave {gpus - learners} GPUs, which is no multiple of the "
                f"{per} of a generator; give --gpus {gpus - rest} or another --gpus-per-generator"
            )
    if learners < 1 or generators < 1:
        raise FileError(f"--gpus {gpus}: there must be at least one learner rank and one generator of {per} GPU")
    split = Split(learners, generators, per)
    if gpus and split.gpus != gpus:
        raise FileError(f"--gpus {gpus}: {generators} generators of {per} GPU and {learners} ranks are {split.gpus}")
    return split
