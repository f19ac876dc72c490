"""What all commands share: where they print, how they fail, and whom they ask."""

import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

out = Console()
err = Console(stderr=True)

Address = Annotated[str, typer.Option(help="The suite's gRPC address.", envvar="AIMASS_ADDRESS")]
Key = Annotated[
    str,
    typer.Option(
        help="Key from `aimass keys make`, where the suite wants to know who calls; others of this machine see it here "
        "and not in the variable.",
        envvar="AIMASS_KEY",
    ),
]
ModelName = Annotated[str, typer.Argument(help="Name of the model.")]
PictureNumber = Annotated[int, typer.Argument(min=1, help="Number of the picture, see `aimass review`.")]
Contributor = Annotated[str, typer.Argument(help="Name of the contributor.")]
SHOW = "show"


class ShownIfNothingElse(TyperGroup):
    """Shows, where no other command is named: `aimass loop cifar10` is `aimass loop show cifar10`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `TyperGroup`."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


def fail(sentence: str) -> NoReturn:
    """Print *sentence* as an error and end the command with 1."""
    err.print(f"[red]error:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def say(console: Console, line: str) -> None:
    """Print *line* as it is, however long it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
