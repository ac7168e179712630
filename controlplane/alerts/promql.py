"""What a PromQL expression names. Enough of the language to find the metrics in it, and no more."""

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_MATCHERS = re.compile(r"\{[^{}]*\}")
_LABEL_LIST = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_WORD = re.compile(r"(?<![\w:.$])([A-Za-z_:][\w:]*)(\s*\()?")
_KEYWORDS = frozenset(
    (
        "and",
        "or",
        "unless",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "inf",
        "nan",
    )
)


def metric_names(expression: str) -> frozenset[str]:
    """Sample names in an expression, as written: `rl_trainer_step_seconds_bucket`, `run:rl_x:mean10m`, `up`.

    Labels, functions, durations and dashboard variables are left out; so are metrics chosen only by a `__name__` matcher.
    """
    bare = _STRING.sub('""', expression)
    for pattern in (_MATCHERS, _LABEL_LIST):
        bare = pattern.sub(" ", bare)
    bare = re.sub(r"\boffset\s+-?\w+", " ", bare)
    return frozenset(
        word
        for word, call in _WORD.findall(bare)
        if not call and word.lower() not in _KEYWORDS and not re.fullmatch(r"\d.*", word)
    )
