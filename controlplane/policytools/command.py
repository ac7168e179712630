"""`scalerl policy`: check, explain, diff, show, schema."""

from typing import Annotated

import typer

from controlplane.policy import find, load, parse
from controlplane.policytools.difference import Effect, difference
from controlplane.policytools.explain import explain as explain_policy
from controlplane.policytools.schema import schema as schema_text

app = typer.Typer(help="Check, explain, compare and show policies.", no_args_is_help=True, rich_markup_mode=None)

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="Policy file, or the name of a shipped policy.")]


@app.command()
def check(policy: PolicyArgument) -> None:
    """Check a policy; prints one line and exits with 2 if anything is wrong with it."""
    name, text = find(policy)
    checked = parse(text, name)
    may = ", ".join(f"{family.value}: {level.name}" for family, level in checked.autonomy.items()) or "observe only"
    typer.echo(f"{name}: fine. {len(checked.detectors)} detectors, {len(checked.rules)} rules; {may}")


@app.command()
def explain(policy: PolicyArgument) -> None:
    """Say in sentences what a policy looks for, how often that alarms for nothing, and what each rule does."""
    typer.echo(explain_policy(load(policy), lambda text: typer.echo(text, err=True)), nl=False)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Policy file, or the name of a shipped policy.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same, to compare with it.")],
    fail_if_looser: Annotated[
        bool, typer.Option("--fail-if-looser", help="Exit with 1 if the new one lets the controller do more.")
    ] = False,
) -> None:
    """Say what changes between two policies: what becomes looser, what stricter, which alarms come sooner or later."""
    found = difference(load(old), load(new))
    for each in found:
        typer.echo(str(each))
    if not found:
        typer.echo("the two mean the same")
    if fail_if_looser and any(each.effect is Effect.looser for each in found):
        raise typer.Exit(1)


@app.command()
def show(policy: Annotated[str, typer.Argument(help="Name of a shipped policy, or a file.")] = "observe") -> None:
    """Print a shipped policy, to start your own from."""
    typer.echo(find(policy)[1], nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a policy file, for editors that check while you type."""
    typer.echo(schema_text(), nl=False)
