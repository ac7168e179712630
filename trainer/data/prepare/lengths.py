"""Stage length_validation: what is too long to be sampled, or to be learned from."""

from collections.abc import Callable, Sequence

from trainer.data.prepare.entry import Entry, Removed, Sifted
from trainer.data.prepare.spec import Length

Count = Callable[[str], int]


def white_space_words(text: str) -> int:
    """Number of words between white space; a lower bound of any tokenizer's count for ordinary text."""
    return len(text.split())


def length_validation(entries: Sequence[Entry], limits: Length, count: Count) -> Sifted:
    """Remove prompts and solutions beyond the limits. `count` gives the tokens of a text."""
    kept: list[Entry] = []
    removed: list[Removed] = []
    for entry in entries:
        fault = _fault(entry, limits, count)
        if fault:
            removed.append(Removed(entry, *fault))
        else:
            kept.append(entry)
    return Sifted(kept, removed)


def _fault(entry: Entry, limits: Length, count: Count) -> tuple[str, str] | None:
    prompt, solution = entry.record.prompt, entry.record.solution
    if len(prompt) > limits.prompt_characters:
        return "long prompt", f"the prompt has {len(prompt)} characters, allowed are {limits.prompt_characters}"
    if (found := count(prompt)) > limits.prompt_tokens:
        return "long prompt", f"the prompt has {found} tokens, allowed are {limits.prompt_tokens}"
    if solution is not None and (found := count(solution)) > limits.solution_tokens:
        return "long solution", f"the solution has {found} tokens, allowed are {limits.solution_tokens}"
    return None
