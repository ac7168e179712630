"""Made-up mathematics problems that look like real ones to a deduplicator: set phrases, common words, rare words, numbers.

`python -m tests.trainer.data.corpus DIR [COUNT]` writes a corpus the size of Polaris-53K with a spec beside it.
"""

import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.data.files import Record

_OPEN = (
    "Let {a} and {b} be positive integers such that",
    "A {x} has {n} {y}s of which {m} are {z}.",
    "Suppose that the {x} of a {y} is ${n}{a}^2 + {m}{b}$ and that",
    "In triangle $ABC$, the side $AB$ has length ${n}$ and",
    "Consider the function $f({a}) = {n}{a}^3 - {m}{a}$ defined for every {x} where",
    "There are {n} {x}s sitting around a {y} and",
)
_CLOSE = (
    "Find the remainder when ${a}+{b}$ is divided by 1000.",
    "What is the value of ${n}{a} - {m}{b}$?",
    "Determine the number of ways in which this can happen.",
    "The probability can be written as $\\frac{{m}}{{n}}$ where m and n are relatively prime positive integers. Find $m+n$.",
    "Compute the sum of all possible values of ${a}$.",
)
SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s", "l")]


def problem(rng: random.Random) -> str:
    """One problem of 25 to 90 words; two are alike by accident alone."""
    x, y, z, *middle = rng.choices(WORDS, cum_weights=WEIGHTS, k=rng.randint(15, 73))
    names = {
        "a": rng.choice("abkmnpqxyz"),
        "b": rng.choice("cdrstuvw"),
        "n": rng.randint(2, 400),
        "m": rng.randint(2, 90),
        "x": x,
        "y": y,
        "z": z,
    }
    text = f"{rng.choice(_OPEN)} {' '.join(middle)}. {rng.choice(_CLOSE)}"
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def _lexicon() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3))) for _ in range(20_000)]


WORDS = _lexicon()
"""Made-up words; their frequencies fall as those of a language do (Zipf and Mandelbrot)."""
WEIGHTS = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(WORDS))))


def corpus(count: int, seed: int) -> list[Record]:
    """Distinct clean records, with difficulties k/8 as Polaris has them."""
    rng = random.Random(seed)
    return [
        Record(
            prompt=problem(rng),
            answer=str(rng.randint(0, 999)),
            id=f"made-{seed}-{number:05d}",
            difficulty=f"{rng.randint(0, 7)}/8",
        )
        for number in range(count)
    ]


def reworded(prompt: str, rng: random.Random, changes: int = 1) -> str:
    """The same problem with a few words replaced."""
    parts = prompt.split(" ")
    for position in rng.sample(range(len(parts)), changes):
        parts[position] = "otherwise"
    return " ".join(parts)


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dirty(clean: Sequence[Record], seed: int) -> list[dict[str, object]]:
    """Rows of a file with the columns of Polaris-53K: the clean records, and 2 % each of exact and near duplicates."""
    rng = random.Random(seed)
    rows = [{"problem": r.prompt, "answer": r.answer, "difficulty": r.difficulty} for r in clean]
    chosen = rng.sample(rows, len(rows) // 25)
    exact = [{**row, "problem": f"  {row['problem']}\r\n"} for row in chosen[::2]]
    near = [{**row, "problem": reworded(str(row["problem"]), rng)} for row in chosen[1::2]]
    rows += exact + near
    rng.shuffle(rows)
    return rows  # type: ignore[return-value]


def main(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    held = corpus(500, seed=2)
    write(
        folder / "polaris.jsonl",
        dirty(corpus(count, seed=1), seed=3)
        + [{"problem": r.prompt, "answer": "1", "difficulty": "1/8"} for r in held[:50]],
    )
    write(folder / "math500.jsonl", [{"problem": r.prompt, "answer": r.answer} for r in held])
    (folder / "spec.yaml").write_text(
        "inputs: [{path: polaris.jsonl}]\noutput: prepared\n"
        "decontaminate: {against: {MATH-500: {path: math500.jsonl}}}\nsplit: {validation: 1000, test: 0.05}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 53_000)
