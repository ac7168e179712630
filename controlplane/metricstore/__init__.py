"""Built-in metric store: what the pages of a run said over time, in one SQLite file, for runs without a Prometheus."""

from controlplane.metricstore.openmetrics import openmetrics
from controlplane.metricstore.recorder import Recorder
from controlplane.metricstore.store import MetricStore, StoreError

__all__ = ["MetricStore", "Recorder", "StoreError", "openmetrics"]
