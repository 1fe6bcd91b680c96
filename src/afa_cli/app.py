"""The ``afa`` command: its verbs, and what becomes of errors."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from afa_cli.adapters import inspect, merge
from afa_cli.chat import chat
from afa_cli.eagle import eagle_app
from afa_cli.errors import EXTRA, MissingExtraError, user_errors
from afa_cli.evaluation import eval_app
from afa_cli.export import export
from afa_cli.harness import harness
from afa_cli.recipes import recipes
from afa_cli.report import report
from afa_cli.reproduce import reproduce
from afa_cli.schedule import schedule
from afa_cli.training import demo, grpo, sft

app = typer.Typer(
    help="AFA-LoRA: fine-tune with an activation that is annealed away, and get an ordinary adapter or model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"afa-lora {version('afa-lora')}")
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for verb in (sft, grpo, recipes, chat, export, merge, inspect, schedule, reproduce, report, demo):
    app.command()(verb)
eval_app.command()(harness)
app.add_typer(eval_app, name="eval")
app.add_typer(eagle_app, name="eagle")


def run() -> None:
    """Run the command line; an error that the user can mend becomes one message and exit code 2."""
    try:
        try:
            app(prog_name="afa")
        except ModuleNotFoundError as error:
            if error.name not in EXTRA:
                raise
            raise MissingExtraError(error.name) from error
    except user_errors() as error:
        typer.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from error
