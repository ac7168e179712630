"""Colours and type of the report, once for page and plots.

Plots are drawn in the light colours; in the page each colour becomes a CSS variable, so the same SVG follows the reader's
light or dark scheme and prints light.
"""

import re

COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#fdfdfc", "#14171b"),
    "panel": ("#f4f5f3", "#1c2026"),
    "ink": ("#1d232b", "#e7eaee"),
    "soft": ("#5d6671", "#a3adb9"),
    "rule": ("#d9dcd8", "#343a43"),
    "held": ("#1f5fa8", "#72b1f2"),
    "train": ("#9db8d4", "#4a6684"),
    "band": ("#cfe0f1", "#26425e"),
    "good": ("#2c7a47", "#6cc48a"),
    "attention": ("#9a6400", "#e3b04b"),
    "bad": ("#b3352d", "#f0857c"),
    "lost": ("#cf6a62", "#b5645e"),
    "arm2": ("#8a4fa3", "#c99ae0"),
    "arm3": ("#4f5b66", "#b4bec9"),
}
"""Name -> (light, dark). good, attention and bad carry judgement; the others none."""

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif'

_NAMES = {light: name for name, (light, _) in COLOURS.items()}


def light(name: str) -> str:
    return COLOURS[name][0]


def inline(svg: str, label: str) -> str:
    """A matplotlib SVG as part of an HTML page: no prologue, no metadata, no namespace addresses, colours as variables."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: f"var(--{_NAMES[m[0]]})" if m[0] in _NAMES else m[0], body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def style() -> str:
    """The style sheet of the page."""
    days = " ".join(f"--{name}: {day};" for name, (day, _) in COLOURS.items())
    nights = " ".join(f"--{name}: {night};" for name, (_, night) in COLOURS.items())
    return _SHEET.replace("DAYS", days).replace("NIGHTS", nights).replace("FONT", FONT)


_SHEET = """
:root { color-scheme: light dark; DAYS }
@media screen and (prefers-color-scheme: dark) { :root { NIGHTS } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 2.2rem 1.4rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 FONT; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: FONT !important; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; letter-spacing: .01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .3rem; }
.headline { font-size: 1.4rem; line-height: 1.35; font-weight: 600; margin: 0 0 1.2rem; max-width: 58rem; text-wrap: pretty; }
p { max-width: 46rem; margin: .3rem 0 .8rem; } .soft, .note { color: var(--soft); } .note { font-size: .9rem; }
.good { color: var(--good); } .attention { color: var(--attention); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; background: var(--rule);
  border: 1px solid var(--rule); border-radius: 6px; overflow: hidden; margin: 0 0 1.2rem; }
.figures div { background: var(--page); padding: .6rem .8rem; }
.figures dt { color: var(--soft); font-size: .82rem; } .figures dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.figures dd small { font-size: .8rem; color: var(--soft); display: block; line-height: 1.3; }
dl { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .4rem 0 1rem; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--rule); padding: .3rem .8rem .3rem 0; }
td { vertical-align: top; border-bottom: 1px solid var(--rule); padding: .4rem .8rem .4rem 0; font-variant-numeric: tabular-nums; }
td:last-child, th:last-child { padding-right: 0; } .wide { overflow-x: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .9em; }
article + article { border-top: 3px solid var(--rule); margin-top: 3.4rem; padding-top: 1.8rem; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } figure, tr, .figures { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
figure { margin: .4rem 0 1rem; }
"""
