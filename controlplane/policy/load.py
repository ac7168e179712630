"""From a policy file, or the name of a shipped preset, to a checked `Policy`."""

from importlib import resources
from pathlib import Path

from controlplane.contract import yamlfile
from controlplane.policy.models import Policy

_PRESETS = resources.files("controlplane.policy") / "presets"


def preset_names() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))


def find(name_or_path: str) -> tuple[str, str]:
    """(name for messages, text) of a policy file or preset.

    Raises:
        FileError: neither a readable file nor a preset.
    """
    if name_or_path in preset_names():
        return f"preset {name_or_path}", (_PRESETS / f"{name_or_path}.yaml").read_text()
    try:
        return name_or_path, yamlfile.read_text(Path(name_or_path))
    except OSError as error:
        presets = ", ".join(preset_names())
        reason = error.strerror or error
        raise yamlfile.FileError(f"{name_or_path}: cannot be read ({reason}); shipped policies are {presets}") from None


def load(name_or_path: str) -> Policy:
    """Load and check a policy; see `find` and `yamlfile.parse` for what is refused."""
    name, text = find(name_or_path)
    return parse(text, name)


def parse(text: str, name: str = "<policy>") -> Policy:
    """A policy from its text; `name` stands in error messages."""
    return yamlfile.parse(text, Policy, name=name)
