"""Telling others what the controller did: annotations in Grafana, a webhook. Never in the way of a decision.

loop, after the journal -> Notifier -> Notice -> Outbox (bounded, a thread each) -> Grafana | webhook
"""

from controlplane.notify.grafana import Grafana, GrafanaError
from controlplane.notify.notice import Notice
from controlplane.notify.notifier import Notifier
from controlplane.notify.outbox import Channel, DeliveryError, Outbox
from controlplane.notify.settings import notifier_of

__all__ = ["Channel", "DeliveryError", "Grafana", "GrafanaError", "Notice", "Notifier", "Outbox", "notifier_of"]
