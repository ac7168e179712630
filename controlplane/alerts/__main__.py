"""Writes everything that is generated from the metric list and the alerts: `python -m controlplane.alerts [--check]`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from controlplane.alerts.alertmanager import alertmanager
from controlplane.alerts.limits import limits
from controlplane.alerts.rulefiles import rule_files, test_files
from controlplane.alerts.runbooks import runbooks
from controlplane.alerts.usage import metrics_page
from controlplane.policy import load

POLICY = "lecture"
"""The shipped files have the numbers that the users asked for by name."""
FOLDERS = ("alerts/rules", "alerts/tests", "docs/runbooks")
"""Nothing in them is written by hand: what is not generated is out of date."""


def generated(root: Path) -> Mapping[str, str]:
    """Path under `root` -> text that belongs there."""
    numbers = limits(load(POLICY))
    folders = dict(zip(FOLDERS, (rule_files(numbers), test_files(numbers), runbooks(numbers)), strict=True))
    files = {f"{folder}/{name}": text for folder, texts in folders.items() for name, text in texts.items()}
    files["alerts/alertmanager.yml"] = alertmanager()
    files["docs/metrics.md"] = metrics_page(numbers, root / "dashboards")
    return files


def outdated(root: Path) -> list[str]:
    """Paths that are missing, differ from what would be written, or are no longer written."""
    wanted = generated(root)
    wrong = [path for path, text in wanted.items() if not (root / path).exists() or (root / path).read_text() != text]
    present = [file for folder in FOLDERS for file in (root / folder).glob("*")]
    return sorted({*wrong, *(str(f.relative_to(root)) for f in present if str(f.relative_to(root)) not in wanted)})


def main() -> int:
    """Write, or with `--check` only say what is out of date; exit code."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.alerts", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the repository")
    options = parser.parse_args()
    wrong = outdated(options.root)
    for path in wrong:
        print(f"{path}: out of date" if options.check else path)
    if options.check:
        return 1 if wrong else 0
    for path, text in generated(options.root).items():
        (options.root / path).parent.mkdir(parents=True, exist_ok=True)
        (options.root / path).write_text(text)
    for path in set(wrong) - generated(options.root).keys():
        (options.root / path).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
