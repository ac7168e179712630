"""The part of Grafana's HTTP API that is used, and nothing more: health, folders, dashboards, annotations.

A client of our own on httpx, because `grafana-api` is no longer maintained and its successor `grafana-client` depends on a package that
replaces `urllib3` in the whole environment (docs/dashboards.md). Everything that knows Grafana's API is in this file.
"""

from typing import Any

import httpx

Json = dict[str, Any]
TIMEOUT_SECONDS = 5.0


class GrafanaError(Exception):
    """Grafana did not do what was asked; one sentence, without the token. `final`: asking again would not help."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Grafana:
    """A Grafana server, spoken to with a service-account token."""

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """`url` as in the browser, a sub-path included.

        Raises:
            GrafanaError: the URL is no http(s) address, or there is no token.
        """
        base = url.rstrip("/")
        try:
            parsed = httpx.URL(base)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise GrafanaError(f"{url!r} is not the address of a Grafana: it must begin with http:// or https://", True)
        if parsed.userinfo:
            raise GrafanaError("the address of Grafana must not hold a password: use a service-account token", True)
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise GrafanaError(
                "the service-account token of Grafana is empty or holds characters that no token has", True
            )
        self.url = base
        # A proxy of the environment is right for a server elsewhere, and must not see what stays on this machine.
        proxied = parsed.host not in ("localhost", "127.0.0.1", "::1")
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._client = httpx.Client(timeout=timeout, headers=headers, trust_env=proxied)

    def version(self) -> str:
        """Version of the server; it answers without looking at the token."""
        return str(self._ask("GET", "/api/health").get("version", "unknown"))

    def ensure_folder(self, uid: str, title: str) -> None:
        """Make the folder if there is none of this uid."""
        if self._ask("GET", f"/api/folders/{uid}", missing_is_fine=True) is None:
            self._ask("POST", "/api/folders", {"uid": uid, "title": title})

    def is_provisioned(self, uid: str) -> bool:
        """Whether a dashboard comes from files on the server, which own it: writing would be undone, or is refused."""
        found = self._ask("GET", f"/api/dashboards/uid/{uid}", missing_is_fine=True)
        return bool(found and found.get("meta", {}).get("provisioned"))

    def save_dashboard(self, dashboard: Json, folder: str, message: str) -> str:
        """Create or replace by uid; the address of the dashboard."""
        body = {"dashboard": {**dashboard, "id": None}, "folderUid": folder, "overwrite": True, "message": message}
        return str(self._ask("POST", "/api/dashboards/db", body).get("url", ""))

    def add_annotation(self, at: float, until: float | None, tags: list[str], text: str) -> int:
        """An annotation of the organisation: shown by tag on every dashboard. Times in Unix seconds; its id."""
        answer = self._ask("POST", "/api/annotations", _annotation(at, until, tags, text))
        try:
            return int(answer["id"])
        except (KeyError, TypeError, ValueError):
            raise GrafanaError("Grafana took an annotation and gave no id for it", True) from None

    def change_annotation(self, number: int, at: float, until: float | None, tags: list[str], text: str) -> None:
        """Replace an annotation. All of it is sent each time: what is left out might be emptied."""
        self._ask("PATCH", f"/api/annotations/{number}", _annotation(at, until, tags, text))

    def find_annotation(self, tags: list[str]) -> int | None:
        """Id of an annotation with all of these tags."""
        found = self._ask(
            "GET", "/api/annotations", parameters=httpx.QueryParams([*(("tags", tag) for tag in tags), ("limit", "1")])
        )
        return int(found[0]["id"]) if found else None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        parameters: httpx.QueryParams | None = None,
        missing_is_fine: bool = False,
    ) -> Any:
        try:
            response = self._client.request(method, self.url + path, json=body, params=parameters)
        except httpx.HTTPError as error:
            raise GrafanaError(f"Grafana at {self.url} does not answer ({type(error).__name__})") from None
        status = response.status_code
        if status == 404 and missing_is_fine:
            return None
        if status in (401, 403):
            need = "the token is not valid" if status == 401 else "the token may not do this"
            raise GrafanaError(f"Grafana at {self.url} refused {method} {path}: {need}", final=True)
        if not 200 <= status < 300:
            raise GrafanaError(
                f"Grafana at {self.url} answered {status} to {method} {path}{_said(response)}",
                status < 500 and status != 429,
            )
        try:
            return response.json()
        except ValueError:
            raise GrafanaError(f"{self.url} does not answer {path} like a Grafana", final=True) from None


def _annotation(at: float, until: float | None, tags: list[str], text: str) -> Json:
    start = round(at * 1000)
    return {"time": start, "timeEnd": start if until is None else round(until * 1000), "tags": tags, "text": text}


def _said(response: httpx.Response) -> str:
    try:
        return f": {response.json()['message']}"[:200]
    except (ValueError, KeyError, TypeError):
        return ""
