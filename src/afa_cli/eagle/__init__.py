"""The verbs of ``afa eagle``."""

from __future__ import annotations

import typer

from afa_cli.eagle.evaluate import evaluate
from afa_cli.eagle.export import export_draft
from afa_cli.eagle.features import features
from afa_cli.eagle.quickstart import quickstart
from afa_cli.eagle.train import train

eagle_app = typer.Typer(
    help="EAGLE: train a draft for speculative decoding, measure it, export it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
eagle_app.command()(quickstart)
eagle_app.command()(features)
eagle_app.command()(train)
eagle_app.command("eval")(evaluate)
eagle_app.command("export")(export_draft)
