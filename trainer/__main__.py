"""`python -m trainer RECIPE --run DIR`: the train command without the rest of the command line."""

import typer

from trainer.cli import train

if __name__ == "__main__":
    typer.run(train)
