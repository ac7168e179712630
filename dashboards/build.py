"""From a policy to the files, and back to whether the files are still what the generator makes."""

import json
from pathlib import Path

from controlplane.policy import load
from dashboards.boards import BOARDS
from dashboards.frame import dashboard
from dashboards.panel import Json
from dashboards.thresholds import Limits

FOLDER = Path(__file__).parent / "provisioning" / "dashboards" / "scalerl"
SHIPPED = "lecture"
"""The policy whose limits the shipped files draw: that of the shipped alert rules."""


def thresholds_of(policy: str = SHIPPED) -> Limits:
    """Limits of a shipped policy or of a policy file."""
    return Limits(load(policy))


def build(policy: str = SHIPPED) -> dict[str, Json]:
    """File name -> dashboard, with the limits of this policy."""
    limits = thresholds_of(policy)
    boards = [make(limits) for make in BOARDS]
    return {f"{board.name}.json": dashboard(board) for board in boards}


def rendered(policy: str = SHIPPED) -> dict[str, str]:
    """File name -> text, as it is written."""
    return {name: json.dumps(made, indent=1, ensure_ascii=False) + "\n" for name, made in build(policy).items()}


def write(folder: Path = FOLDER, policy: str = SHIPPED) -> list[Path]:
    """Write every dashboard into `folder`; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = rendered(policy)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def differences(folder: Path = FOLDER, policy: str = SHIPPED) -> list[str]:
    """One sentence for each file that is not what the generator makes."""
    texts = rendered(policy)
    found = [f"{folder / name}: is missing" for name in texts if not (folder / name).exists()]
    for path in sorted(folder.glob("*.json")):
        if path.name not in texts:
            found.append(f"{path}: no dashboard of this name is generated")
        elif path.read_text() != texts[path.name]:
            found.append(f"{path}: differs from what the generator makes")
    return found
