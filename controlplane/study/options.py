"""How a study is run and fitted, as the command line says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from controlplane.contract.yamlfile import FileError
from controlplane.study.curves import AXES, Axis
from controlplane.study.fits import PAPER, RELATIVE, Grid


@dataclass(frozen=True)
class Options:
    """How a study is run and fitted."""

    out: Path
    recipe: str
    overrides: Mapping[str, str]
    """The user's own `--set`, stronger than the study's."""
    seeds: Sequence[int]
    at_once: int
    axis: Axis
    grid: Grid
    margin: float


def options_of(
    out: Path,
    recipe: str,
    override: list[str] | None,
    steps: int,
    seeds: int,
    jobs: int,
    axis: str,
    drop: float,
    paper_grid: bool,
    margin: float,
) -> Options:
    """What the command line says, checked.

    Raises:
        FileError: an option is wrong.
    """
    overrides = dict(_pair(text) for text in override or [])
    if steps:
        overrides["steps"] = str(steps)
    for key in ("name", "seed"):
        if key in overrides:
            raise FileError(f"--set {key}: every run of a study has its own; use --seeds")
    if paper_grid and (axis != "device-seconds" or drop):
        raise FileError("--paper-grid: brings its own axis and cut; leave --axis and --drop out")
    if axis not in AXES:
        raise FileError(f"--axis: must be one of {', '.join(AXES)}, not {axis!r}")
    return Options(
        out=out,
        recipe=recipe,
        overrides=overrides,
        seeds=range(1, seeds + 1),
        at_once=jobs,
        axis="gpu-hours" if paper_grid else axis,
        grid=PAPER if paper_grid else replace(RELATIVE, cut=drop),
        margin=margin,
    )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise FileError(f"--set {text}: give KEY=VALUE, for example --set optimizer.lr=3e-5")
    return key, value
