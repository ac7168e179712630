"""Where samples come from: the built-in scraper or a Prometheus server, behind one interface."""

from controlplane.sources.base import MetricSource, QuerySource, Sample, SourceError
from controlplane.sources.prometheus import PrometheusSource
from controlplane.sources.scrape import ScrapeSource

__all__ = ["MetricSource", "PrometheusSource", "QuerySource", "Sample", "ScrapeSource", "SourceError"]
