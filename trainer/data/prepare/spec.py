"""The spec: everything that decides what is prepared, in one YAML file. Paths are relative to that file."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from controlplane.contract.yamlfile import Misplaced, load
from trainer.data.files import COLUMNS


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """A file or directory of prompts: JSON lines, Parquet, or a saved dataset."""

    path: str = Field(min_length=1)
    columns: dict[str, str] = {}
    """Field of a record -> column of the file, where the usual names do not fit: `prompt: problem`."""
    split: str | None = None
    """Which split to read of a directory that holds several."""

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in COLUMNS:
                raise ValueError(f"{name!r} is no field of a record (allowed: {', '.join(COLUMNS)})")
        return columns


class Input(Source):
    kind: Literal["math", "code"] = "math"
    """What judges a completion: an answer (math) or unit tests (code)."""


class Length(_Part):
    """Stage length_validation."""

    prompt_characters: int = Field(default=20_000, ge=1)
    """Longest prompt."""
    prompt_tokens: int = Field(default=2048, ge=1)
    """Longest prompt; a ScaleRL sequence has 2,048 tokens for it."""
    solution_tokens: int = Field(default=12_000, ge=1)
    """Longest solution; ScaleRL left traces of more than 12K tokens out of its supervised mix."""
    tokenizer: str | None = None
    """`tokenizer.json`, or the directory that holds it. Without one, words between white space are counted."""


class Similarity(_Part):
    """How alike two prompts are: the Jaccard index of their sets of shingles."""

    unit: Literal["word", "character"] = "word"
    """Shingles of words and signs, or of characters (very short prompts)."""
    size: int = Field(default=3, ge=1, le=20)
    """Units in a shingle."""


class NearDuplicates(_Part):
    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """At least this much alike is a near duplicate."""
    different_answers: Literal["keep", "remove"] = "keep"
    """What to do with prompts that are alike and have different answers: mostly one problem with other numbers."""


class Decontaminate(_Part):
    against: dict[str, Source] = Field(min_length=1)
    """Evaluation sets by name."""
    ngram: int = Field(default=13, ge=3, le=100)
    """Words in a row that a prompt must not share with an evaluation item."""
    boilerplate: int = Field(default=3, ge=2)
    """An n-gram in this many different evaluation items or more, whatever its numbers and one-letter names, is a set phrase
    and counts for nothing."""


class Trivial(_Part):
    pass_rate: float | None = Field(default=None, gt=0, le=1)
    """Prompts that some model solves this often or more are removed."""
    difficulties: tuple[str, ...] = ()
    """Prompts of these difficulties are removed."""
    shorter_than: int = Field(default=0, ge=0)
    """Prompts of fewer characters are removed."""


class Toxicity(_Part):
    module: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function`, importable; the function takes a prompt and gives a score."""
    threshold: float = Field(allow_inf_nan=False)
    """Prompts with this score or more are removed."""


class Split(_Part):
    """What is neither validation nor test is training."""

    seed: int = 0
    validation: int | float = 0.05
    """Share (0.05) or number (1000) of prompts; ScaleRL holds out 1,000."""
    test: int | float = 0.05
    edges: tuple[float, ...] = ()
    """Numbers that part numeric difficulties into strata; without them each difficulty is a stratum."""
    together: float | None = Field(default=0.6, ge=0.5, le=1)
    """Prompts at least this much alike come into the same split; null turns it off."""

    @field_validator("validation", "test", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not fine and not (isinstance(value, float) and 0 <= value < 1):
            raise ValueError("must be a share from 0 to below 1 (0.05) or a whole number of prompts (1000)")
        return value

    @model_validator(mode="after")
    def _leaves_training(self) -> "Split":
        shares = [value for value in (self.validation, self.test) if isinstance(value, float)]
        if sum(shares) >= 1:
            raise Misplaced(("test",), "validation and test take everything and leave no training prompt")
        if list(self.edges) != sorted(set(self.edges)):
            raise Misplaced(("edges",), "must be growing numbers")
        return self


class Spec(_Part):
    inputs: tuple[Input, ...] = Field(min_length=1)
    output: str = Field(min_length=1)
    """Directory to make; it must not exist."""
    length: Length = Length()
    similarity: Similarity = Similarity()
    near_duplicates: NearDuplicates | None = NearDuplicates()
    decontaminate: Decontaminate | None = None
    trivial: Trivial = Trivial()
    toxicity: Toxicity | None = None
    split: Split = Split()


def load_spec(path: Path) -> Spec:
    """Read a spec.

    Raises:
        FileError: one sentence: file, line, key, what is wrong, what is allowed.
    """
    return load(path, Spec)
