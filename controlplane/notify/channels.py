"""Where notices go: Grafana as annotations, a webhook as JSON."""

import html
import logging
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

import httpx

from controlplane.notify.grafana import Grafana, GrafanaError
from controlplane.notify.notice import Notice
from controlplane.notify.outbox import DeliveryError

PRODUCT = "scalerl"
"""The tag that all annotations have; the dashboards show annotations of this tag and `run:NAME`."""
REMEMBERED = 256


class GrafanaChannel:
    """One annotation for each decision, changed when the trainer answers and when the verdict is there."""

    name = "grafana"

    def __init__(self, grafana: Grafana) -> None:
        self._grafana = grafana
        self._ids: OrderedDict[str, int] = OrderedDict()

    def deliver(self, notice: Notice) -> None:
        """Write or change the annotation of this decision."""
        tags, text = tags_of(notice), text_of(notice)
        try:
            number = self._number(notice)
            if number is None:
                number = self._grafana.add_annotation(notice.at, notice.until, tags, text)
            else:
                self._grafana.change_annotation(number, notice.at, notice.until, tags, text)
        except GrafanaError as error:
            raise DeliveryError(str(error), error.final) from None
        self._ids[notice.key] = number
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    def _number(self, notice: Notice) -> int | None:
        if notice.key in self._ids or (notice.until is None and not notice.verdict):
            return self._ids.get(notice.key)
        # Another process wrote it: this controller was started after the decision.
        return self._grafana.find_annotation([PRODUCT, f"decision:{notice.key}"])


def tags_of(notice: Notice) -> list[str]:
    """What the annotation can be found by."""
    tags = [PRODUCT, f"run:{notice.run}", f"rule:{notice.rule}", f"action:{notice.action}", f"result:{notice.result}"]
    return [*tags, f"decision:{notice.key}"]


def text_of(notice: Notice) -> str:
    """The words of the annotation. Grafana shows HTML, so what comes from the run is escaped."""
    approval = f"approved by {notice.approved_by}" if notice.approved_by else ""
    what = f"{notice.action} ({notice.result}) by rule {notice.rule}"
    lines = [what, notice.change, notice.reason, approval, notice.verdict]
    return "<br>".join(html.escape(line, quote=False) for line in lines if line)


class Webhook:
    """POSTs every notice as JSON. Its address is a secret: it is in no message, log or journal."""

    name = "webhook"

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        """
        Raises:
            DeliveryError: this is no http(s) address.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise DeliveryError("the address of the webhook must begin with http:// or https://", final=True)
        # httpx logs every address at INFO, and this one is a secret.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._url = url
        self._client = httpx.Client(timeout=timeout, trust_env=parsed.host not in ("localhost", "127.0.0.1", "::1"))

    def deliver(self, notice: Notice) -> None:
        """Send it; any answer of 2xx is taken as received."""
        try:
            status = self._client.post(self._url, json=payload_of(notice)).status_code
        except httpx.HTTPError as error:
            raise DeliveryError(f"the webhook does not answer ({type(error).__name__})") from None
        if not 200 <= status < 300:
            raise DeliveryError(f"the webhook answered {status}", final=status < 500 and status != 429)


def payload_of(notice: Notice) -> dict[str, Any]:
    """The body: every field of the notice, a version, and one line for a chat that shows only `text`."""
    words = f"{notice.run}, step {notice.step}: {notice.action} ({notice.result}) by rule {notice.rule}"
    detail = "; ".join(part for part in (notice.change, notice.verdict or notice.reason) if part)
    return {"version": 1, "product": PRODUCT, "text": f"{words}. {detail}", **asdict(notice)}
