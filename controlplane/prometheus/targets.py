"""Targets of many runs in one folder.

Trainer and controller write a target file each into their run directory, and take it away when they end in order. Prometheus
takes a wildcard only in the last part of a path, so it cannot look into `RUNS/*/`; the files are copied side by side instead.
"""

import json
from pathlib import Path

from controlplane.contract.rundir import RunDir, write_atomic


def run_directories(runs: Path) -> list[RunDir]:
    """`runs` itself if it is a run directory, else those in it and one folder deeper, in order of name."""
    found = [runs] if (runs / "run.json").exists() else [path.parent for path in runs.glob("*/run.json")]
    found += [] if (runs / "run.json").exists() else [path.parent for path in runs.glob("*/*/run.json")]
    return [RunDir(path) for path in sorted(found)]


def mirror(runs: Path, folder: Path) -> int:
    """Make `folder` hold the target files of all runs below `runs`, and nothing else; the number of them.

    A file that is being replaced, or is no target file, is left out until the next turn: Prometheus keeps what it had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted: set[Path] = set()
    for rundir in run_directories(runs):
        name = "-".join(rundir.root.relative_to(runs).parts) or rundir.root.name
        for kind, source in (("trainer", rundir.target), ("controller", rundir.controller_target)):
            target = folder / f"{name}.{kind}.json"
            if not source.exists():
                continue
            wanted.add(target)
            if (text := _targets(source)) and not (target.exists() and target.read_text() == text):
                write_atomic(target, text)
    for stale in set(folder.glob("*.json")) - wanted:
        stale.unlink(missing_ok=True)
    return len(wanted)


def _targets(source: Path) -> str:
    try:
        text = source.read_text()
        ok = all(isinstance(entry["targets"], list) and entry["labels"]["run"] for entry in json.loads(text))
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return text if ok else ""
