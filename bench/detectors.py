"""False alarms and delays of every detector in the shipped policies, by simulation: `python bench/detectors.py`.

With `--write` the figures go where they are read: `controlplane/detect/figures.json`, the "Measured" line of each docstring in
`controlplane/policy/detectors.py`, and the table in `docs/detectors.md`. `tests/detect` checks that the three agree.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from controlplane.detect import figures
from controlplane.detect.figures import Figures
from controlplane.detect.trial import measure
from controlplane.policy import load, preset_names
from controlplane.policy.detectors import BernoulliCusum, Cusum, Detector, RobustZ, Slide, Threshold, Trend
from controlplane.policy.signals import BUILT_IN, SignalSpec

ROOT = Path(__file__).resolve().parent.parent
JSON = ROOT / "controlplane" / "detect" / "figures.json"
SOURCE = ROOT / "controlplane" / "policy" / "detectors.py"
SCHEMA = ROOT / "controlplane" / "policy" / "policy.schema.json"
DOCS = ROOT / "docs" / "detectors.md"
DEFAULTS: dict[str, Detector] = {
    "Cusum": Cusum(kind="cusum", signal="pass_rate", side="low"),
    "RobustZ": RobustZ(kind="robust_z", signal="grad_norm"),
    "Threshold": Threshold(kind="level", signal="truncation", above=0.1),
    "BernoulliCusum": BernoulliCusum(kind="bernoulli_cusum"),
    "Trend": Trend(kind="trend", signal="truncation", above=0.1),
    "Slide": Slide(kind="slide", signal="pass_rate"),
}
"""One of each class, at its defaults: their figures stand in the docstrings."""


def wanted() -> dict[str, tuple[Detector, SignalSpec | None]]:
    """Every distinct detector of the shipped policies and every default, by its key."""
    found: dict[str, tuple[Detector, SignalSpec | None]] = {}
    for config in DEFAULTS.values():
        spec = BUILT_IN[str(getattr(config, "signal", ""))]
        found[figures.key(config, spec)] = config, spec
    for name in preset_names():
        policy = load(name)
        for config in policy.detectors.values():
            signal = getattr(config, "signal", None)
            spec = policy.signal(signal) if signal else None
            found.setdefault(figures.key(config, spec), (config, spec))
    return found


def table(rows: dict[str, tuple[Detector, Figures]]) -> str:
    """The Markdown table of docs/detectors.md."""
    lines = [
        "| detector | settings | false alarms per 1,000 steps | found in (median steps) |",
        "| --- | --- | --- | --- |",
    ]
    for config, found in rows.values():
        plain = config.model_dump(mode="json", exclude={"kind", "signal", "side", "reference", "from_step", "window"})
        if isinstance(config, Threshold):
            plain = {"consecutive": config.consecutive}
        default = type(config).model_fields
        shown = ", ".join(
            f"{k} {v:g}"
            for k, v in plain.items()
            if v is not None and (v != default[k].default or k in ("k", "h", "above", "consecutive"))
        )
        alarms, delays = found.sentence().split(" false alarms per 1,000 steps; found in ")
        lines.append(f"| `{config.kind}` | {shown} | {alarms} | {delays.removesuffix(' steps')} |")
    return "\n".join(lines)


def write(rows: dict[str, tuple[Detector, Figures]]) -> None:
    """Put the figures into the JSON file, the docstrings and the docs."""
    JSON.write_text(figures.dump({key: found for key, (_, found) in rows.items()}))
    text = SOURCE.read_text()
    for name, config in DEFAULTS.items():
        _, found = rows[figures.key(config, BUILT_IN[str(getattr(config, "signal", ""))])]
        line = f"    Measured at its defaults: {found.sentence()}."
        body = re.compile(rf'(class {name}\(.*?\n)(    Measured at its defaults: [^\n]*\n)?(    """\n)', re.DOTALL)
        text = body.sub(
            lambda m, line=line: m[1].rstrip("\n") + ("\n" if m[2] else "\n\n") + f"{line}\n{m[3]}", text, count=1
        )  # type: ignore[misc]
    SOURCE.write_text(text)
    # The schema for editors quotes the docstrings; a fresh process reads the new ones.
    command = [sys.executable, "-m", "controlplane", "policy", "schema"]
    SCHEMA.write_text(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    docs = DOCS.read_text()
    head, _, rest = docs.partition("<!-- figures -->\n")
    _, _, tail = rest.partition("<!-- /figures -->")
    DOCS.write_text(f"{head}<!-- figures -->\n{table(rows)}\n<!-- /figures -->{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=100_000, help="simulated readings per false-alarm figure")
    parser.add_argument("--trials", type=int, default=100, help="simulated changes per delay")
    parser.add_argument("--missing", action="store_true", help="measure only what has no figures yet, keep the others")
    parser.add_argument("--write", action="store_true", help="write the figures where they are read")
    options = parser.parse_args()
    rows: dict[str, tuple[Detector, Figures]] = {}
    started = time.monotonic()
    for number, (key, (config, spec)) in enumerate(every := wanted().items(), 1):
        print(f"{number}/{len(every)} {config.kind} after {time.monotonic() - started:.0f} s", file=sys.stderr)
        kept = figures.known(config, spec) if options.missing else None
        found = kept or measure(config, spec, options.readings, options.trials)
        if found is not None:
            rows[key] = config, found
            print(f"{key}\n    {found.sentence()}")
    if options.write:
        write(rows)


if __name__ == "__main__":
    main()
