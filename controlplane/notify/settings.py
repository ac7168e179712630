"""Addresses and tokens, from the environment or a file, never from a policy and never from the command line's words."""

from collections.abc import Mapping
from pathlib import Path

from controlplane.contract.yamlfile import FileError
from controlplane.notify.channels import GrafanaChannel, Webhook
from controlplane.notify.grafana import Grafana, GrafanaError
from controlplane.notify.notifier import Notifier
from controlplane.notify.outbox import Channel, Count, DeliveryError, Outbox

URL = "SCALERL_GRAFANA_URL"
TOKEN = "SCALERL_GRAFANA_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_FILE = "SCALERL_GRAFANA_TOKEN_FILE"  # noqa: S105
WEBHOOK = "SCALERL_WEBHOOK_URL"


def token_of(environment: Mapping[str, str]) -> str:
    """The service-account token.

    Raises:
        FileError: neither variable is set, or the file cannot be read.
    """
    if token := environment.get(TOKEN, "").strip():
        return token
    name = environment.get(TOKEN_FILE, "")
    if not name:
        raise FileError(f"Grafana wants a service-account token: set {TOKEN}, or {TOKEN_FILE} to a file that holds it")
    try:
        return Path(name).read_text().strip()
    except OSError as error:
        raise FileError(f"{name} ({TOKEN_FILE}): cannot be read ({error.strerror or error})") from None


def grafana_of(environment: Mapping[str, str]) -> Grafana:
    """The Grafana that the environment names.

    Raises:
        FileError: address or token are missing or wrong.
    """
    if not environment.get(URL):
        raise FileError(f"no Grafana is named: set {URL} to its address")
    try:
        return Grafana(environment[URL], token_of(environment))
    except GrafanaError as error:
        raise FileError(str(error)) from None


def notifier_of(run: str, environment: Mapping[str, str], count: Count) -> Notifier | None:
    """Whom the environment wants to be told, or None.

    Raises:
        FileError: what it says cannot be used. Said at the start, so that nobody waits for notices that cannot come.
    """
    channels: list[Channel] = []
    if environment.get(URL):
        channels.append(GrafanaChannel(grafana_of(environment)))
    if address := environment.get(WEBHOOK, ""):
        try:
            channels.append(Webhook(address))
        except DeliveryError as error:
            raise FileError(f"{WEBHOOK}: {error}") from None
    return Notifier(run, [Outbox(channel, count) for channel in channels]) if channels else None
