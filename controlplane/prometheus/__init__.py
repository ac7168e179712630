"""A Prometheus server for the runs below a folder: configuration, targets, rules, start, check."""

from controlplane.prometheus.config import Extra, configuration
from controlplane.prometheus.targets import mirror, run_directories

__all__ = ["Extra", "configuration", "mirror", "run_directories"]
