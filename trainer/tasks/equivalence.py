"""Are two math answers the same? Asked in a process that may be killed (docs/tasks.md); imports math-verify.

Only LaTeX is parsed, which builds expressions without evaluating text as Python.
"""

import logging

from math_verify import LatexExtractionConfig, parse, verify

LATEX = [LatexExtractionConfig()]


def equivalent(reference: str, answer: str) -> bool:
    """Whether math-verify finds `answer` equal to `reference`. May take for ever or all memory; raises nothing."""
    known, given = (_parsed(text) for text in (reference, answer))
    return bool(known and given) and bool(verify(known, given, timeout_seconds=None))


def _parsed(text: str) -> list[object]:
    return list(parse(rf"\boxed{{{text}}}", LATEX, parsing_timeout=None, extraction_mode="first_match"))


# The parser's tables and caches are made once, here; each forked check inherits them.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
for _pair in (
    ("\\frac{1}{2}", "0.5"),
    ("(1, 2]", "x^2 + \\sqrt{3}"),
    ("\\{1, 2\\}", "2 \\pi"),
    ("x = 5", "5"),
    ("1", "\\text{A}"),
):
    equivalent(*_pair)
