"""`scalerl grafana`: the dashboards as files, and onto a server."""

import os
from pathlib import Path
from typing import Annotated

import typer

from controlplane.contract.yamlfile import FileError
from controlplane.notify import Grafana, GrafanaError
from controlplane.notify.settings import grafana_of
from dashboards.build import FOLDER, SHIPPED, build, differences, write
from dashboards.panel import Json

app = typer.Typer(help="Grafana dashboards: write, check, push.", no_args_is_help=True, rich_markup_mode=None)
FOLDER_UID = "scalerl"

PolicyOption = Annotated[
    str,
    typer.Option(help="Policy whose limits are drawn: a shipped one, or a file."),
]
OutOption = Annotated[Path, typer.Option(help="Folder of the files.")]


@app.command(name="build")
def build_files(
    out: OutOption = FOLDER,
    policy: PolicyOption = SHIPPED,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the files are what would be written.")
    ] = False,
) -> None:
    """Write the dashboards as JSON, with the limits of a policy. With --check: exit code 1 if a file differs."""
    if not check:
        for path in write(out, policy):
            typer.echo(str(path))
        return
    found = differences(out, policy)
    for line in found:
        typer.echo(line, err=True)
    raise typer.Exit(1 if found else 0)


@app.command()
def push(
    policy: PolicyOption = SHIPPED,
    folder: Annotated[str, typer.Option(help="Title of the folder, if it has to be made.")] = "RL runs",
) -> None:
    """Put the dashboards on the Grafana of SCALERL_GRAFANA_URL, with the token of SCALERL_GRAFANA_TOKEN or ..._TOKEN_FILE.

    A dashboard that comes from files on the server is left alone. Exit code 0: all are there; 1: at least one is not, each with
    its reason; 2: address, token or policy are wrong, nothing was tried. No run depends on any of it.
    """
    made = build(policy)
    try:
        grafana = grafana_of(os.environ)
    except GrafanaError as error:
        raise FileError(str(error)) from None
    try:
        typer.echo(f"Grafana {grafana.version()} at {grafana.url}")
        grafana.ensure_folder(FOLDER_UID, folder)
        failed = sum(not _pushed(grafana, dashboard, policy) for dashboard in made.values())
    except GrafanaError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    finally:
        grafana.close()
    raise typer.Exit(1 if failed else 0)


def _pushed(grafana: Grafana, dashboard: Json, policy: str) -> bool:
    """Put one dashboard there; False, with the reason said, if it could not be done."""
    name, uid = dashboard["title"], dashboard["uid"]
    try:
        if grafana.is_provisioned(uid):
            typer.echo(
                f"{name}: left alone, because it is provisioned from files on the server; change those", err=True
            )
            return False
        address = grafana.save_dashboard(dashboard, FOLDER_UID, f"scalerl grafana push, limits of policy {policy}")
    except GrafanaError as error:
        typer.echo(f"{name}: {error}", err=True)
        return False
    typer.echo(f"{name}: {grafana.url}{address}")
    return True
