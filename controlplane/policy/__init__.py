"""The policy YAML: what a user allows the controller to look for and to do."""

from controlplane.policy.load import find, load, parse, preset_names
from controlplane.policy.models import Autonomy, Family, Policy, Rule

__all__ = ["Autonomy", "Family", "Policy", "Rule", "find", "load", "parse", "preset_names"]
