"""What a study runs: a file of variants, each a name, where it comes from, and the keys of the recipe that it sets.

A value may be a whole section (`loss: {kind: grpo}`); it is flattened to dotted keys, because the trainer is told by
`--set KEY=VALUE` and a section given whole would lose its other keys.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.contract.yamlfile import FileError, Misplaced, load

SHIPPED = Path(__file__).parent / "variants"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(_Part):
    """Published fit of a variant. C_mid in GPU-hours."""

    A: float | None = None
    B: float | None = None
    C_mid: float | None = None
    B_common: float | None = None
    """B with A fixed to the common 0.605."""


class Variant(_Part):
    """One recipe of the study."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    """Directory and run name."""
    title: str
    """What people read."""
    source: str
    """Where the settings come from."""
    set: dict[str, Any]
    """Keys of the recipe, dotted or nested, over the study's recipe; empty for the recipe as it is."""
    paper: Paper = Paper()


class Study(_Part):
    """Variants to compare, one of them the reference."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    title: str
    reference: str
    """Name of the variant that the others are compared with."""
    recipe: str = "tiny"
    """Recipe under all variants, unless the user names another."""
    settings: dict[str, Any] = {}
    """Keys set in every run of `recipe`; not used with another recipe."""
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> "Study":
        names = [variant.name for variant in self.variants]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise Misplaced(("variants", index, "name"), f"the variant {name!r} is there twice")
        if self.reference not in names:
            raise Misplaced(("reference",), f"must be one of the variants {', '.join(names)}, not {self.reference!r}")
        return self

    def only(self, wanted: str) -> "Study":
        """The study with only the variants of a comma-separated list; the reference stays. Empty keeps all.

        Raises:
            FileError: a name is no variant.
        """
        names = [name.strip() for name in wanted.split(",") if name.strip()]
        known = [variant.name for variant in self.variants]
        for name in names:
            if name not in known:
                raise FileError(f"--variants: {name!r} is no variant of {self.name}; it has {', '.join(known)}")
        kept = tuple(v for v in self.variants if not names or v.name in names or v.name == self.reference)
        return self.model_copy(update={"variants": kept})


def load_study(name: str) -> Study:
    """A file as given, or the shipped study of that name.

    Raises:
        FileError: there is none, or it is wrong; `file:line: key: what is wrong`.
    """
    path = Path(name)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
            raise FileError(f"{name}: no such study; give a file or one of {known}")
    return load(path, Study)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as YAML on one line) for every leaf of the settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", one_line(value)


def one_line(value: Any) -> str:
    """A value as YAML flow text, as `--set` takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
