"""Text as it is stored, and text as it is compared.

`standard` is what the output holds: nothing a reader would see is changed. The keys below are only compared and are blunter.
"""

import re
import unicodedata
from fractions import Fraction

# Of the invisible format characters only those that carry no meaning in any script: zero width space, word joiner,
# byte order mark, soft hyphen, and marks of direction. Joiners are kept, for scripts that need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_EATEN = re.compile("[\x07\x08\x0b\x0c][a-z]{2}|\t(?:imes|heta|riangle|frac)|\r(?:ight|ho|angle)")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|$)")
_BLANKS = re.compile(r"\n{3,}")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!]|\\?\$")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}", re.DOTALL)
_FRAC = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")
_SPACES = re.compile(r"\s+|\\[,;:!]|\\(?:left|right)(?![A-Za-z])|\$")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?(?:/\d{1,30})?|-?\.\d{1,30}")


def standard(text: str) -> str:
    """Line ends, invisible characters, composition (NFC), trailing white space and runs of blank lines brought to one form."""
    text = _INVISIBLE.sub("", _BREAKS.sub("\n", text))
    text = _TRAILING.sub("", unicodedata.normalize("NFC", text))
    return _BLANKS.sub("\n\n", text).strip()


def damage(text: str, latex: bool = True) -> str:
    """What an earlier conversion did to the text as it was read; empty if nothing shows."""
    if "\ufffd" in text:
        return "holds U+FFFD: an earlier conversion lost characters"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half of a surrogate pair, which no file can store"
    if latex and (eaten := _EATEN.search(text)):
        return f"holds a control character where LaTeX had a backslash: {eaten.group()!r}"
    return ""


def tokens(text: str) -> list[str]:
    """Words and single signs; white space and LaTeX that only sets spacing do not count."""
    return _TOKEN.findall(_LAYOUT.sub(" ", text))


def words(text: str) -> list[str]:
    """Words and numbers alone, without case and compatibility forms: what n-grams are made of."""
    return _WORD.findall(unicodedata.normalize("NFKC", _LAYOUT.sub(" ", text)).casefold())


def exact_key(text: str) -> str:
    """Equal for prompts that a person would call the same text."""
    return " ".join(tokens(text))


def answer_key(answer: str) -> str:
    """Equal for answers that are surely the same (1/2, 0.5, \\boxed{\\frac{1}{2}}); empty if nothing of an answer is left.

    It only finds conflicts between copies of one prompt, so it is careful: what it cannot read stays as it is.
    """
    inner = _BOXED.search(answer)
    text = _SPACES.sub("", inner.group(1) if inner else answer).rstrip(".")
    if not text.strip("{}"):
        return ""
    text = _FRAC.sub(r"\1/\2", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if _NUMBER.fullmatch(text):
        try:
            top, _, bottom = text.partition("/")
            return str(Fraction(top) / Fraction(bottom or 1))
        except ZeroDivisionError:
            return text
    return text
