"""Alert rules, recording rules, their tests and runbooks, generated from a policy's numbers."""

from controlplane.alerts.catalogue import alerts, groups
from controlplane.alerts.limits import Limits, limits
from controlplane.alerts.model import Alert, Recording, Story
from controlplane.alerts.promql import metric_names
from controlplane.alerts.recordings import RECORDINGS
from controlplane.alerts.rulefiles import RUNBOOKS, dump, rule_files

__all__ = [
    "RECORDINGS",
    "RUNBOOKS",
    "Alert",
    "Limits",
    "Recording",
    "Story",
    "alerts",
    "dump",
    "groups",
    "limits",
    "metric_names",
    "rule_files",
]
