"""Grafana dashboards of a run: a generator, and what it generated under `provisioning/`.

    metric list + policy -> query -> panel -> layout -> frame -> provisioning/dashboards/scalerl/*.json

Plain dictionaries in Grafana's classic format, `schemaVersion` 39, with nothing that Grafana 10.4 lacks. A query cannot name a metric or
a label that `controlplane.contract.metrics` does not have, and a threshold is read from a policy, so neither can drift.
`python -m dashboards` writes the files, `python -m dashboards --check` compares them.
"""

from dashboards.build import FOLDER, build, rendered, thresholds_of

__all__ = ["FOLDER", "build", "rendered", "thresholds_of"]
