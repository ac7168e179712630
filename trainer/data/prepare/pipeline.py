"""The stages in their order, and one pass through them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trainer.data.prepare.checks import format_standardization
from trainer.data.prepare.contamination import Item, decontamination
from trainer.data.prepare.duplicates import duplicates
from trainer.data.prepare.entry import Entry, Sifted
from trainer.data.prepare.lengths import Count, length_validation
from trainer.data.prepare.near import near_duplicates
from trainer.data.prepare.spec import Spec
from trainer.data.prepare.toxicity import Score, toxicity_filtering
from trainer.data.prepare.trivial import trivial_prompts

Watch = Callable[[Sequence[Entry]], Iterable[Entry]]


@dataclass(frozen=True)
class Stage:
    """One room. `run` is None where the spec turns it off."""

    name: str
    setting: str
    run: Callable[[Sequence[Entry]], Sifted] | None


@dataclass(frozen=True)
class Done:
    """What a stage did."""

    stage: Stage
    read: int
    sifted: Sifted


def stages(spec: Spec, count: Count, items: Sequence[Item], score: Score | None, watch: Watch) -> list[Stage]:
    """All stages in order.

    Args:
        count: tokens of a text.
        items: the evaluation sets.
        score: the toxicity function, if the spec names one.
        watch: wraps the entries of a stage whose time nobody can foresee.
    """
    length, near, clean, toxic = spec.length, spec.near_duplicates, spec.decontaminate, spec.toxicity
    unit = "tokens" if length.tokenizer else "words"
    return [
        Stage("format_standardization", "", format_standardization),
        Stage(
            "length_validation",
            f"prompt up to {length.prompt_characters:,} characters and {length.prompt_tokens:,} {unit}, "
            f"solution up to {length.solution_tokens:,} {unit}",
            lambda entries: length_validation(entries, length, count),
        ),
        Stage("duplicates", "", duplicates),
        Stage(
            "near_duplicates",
            f"from {near.threshold:g} alike; {spec.similarity.unit} shingles of {spec.similarity.size}; "
            f"different answers: {near.different_answers}"
            if near
            else "off",
            (lambda entries: near_duplicates(entries, spec.similarity, near)) if near else None,
        ),
        Stage(
            "decontamination",
            f"{clean.ngram} words in a row; set phrases from {clean.boilerplate} items" if clean else "off",
            (lambda entries: decontamination(entries, items, clean.ngram, clean.boilerplate)) if clean else None,
        ),
        Stage("trivial_prompts", _trivial(spec), lambda entries: trivial_prompts(entries, spec.trivial)),
        Stage(
            "toxicity_filtering",
            f"{toxic.module} from {toxic.threshold:g}" if toxic else "off",
            (lambda entries: toxicity_filtering(watch(entries), score, toxic.threshold)) if toxic and score else None,
        ),
    ]


def _trivial(spec: Spec) -> str:
    trivial = spec.trivial
    parts = [f"pass rate from {trivial.pass_rate:g}"] if trivial.pass_rate is not None else []
    parts += [f"difficulty {', '.join(trivial.difficulties)}"] if trivial.difficulties else []
    parts += [f"shorter than {trivial.shorter_than} characters"] if trivial.shorter_than else []
    return "; ".join(parts) or "off"


def sift(
    entries: Sequence[Entry], rooms: Sequence[Stage], say: Callable[[str], None]
) -> tuple[Sequence[Entry], list[Done]]:
    """Pass the entries through all stages; what is left, and what each stage did."""
    done = []
    for number, stage in enumerate(rooms, 1):
        read = len(entries)
        sifted = stage.run(entries) if stage.run else Sifted(entries, [])
        entries = sifted.kept
        done.append(Done(stage, read, sifted))
        off = " (off)" if stage.setting == "off" else ""
        say(f"{number}/{len(rooms)} {stage.name}{off}: {read:,} read, {len(sifted.removed):,} removed")
    return entries, done
