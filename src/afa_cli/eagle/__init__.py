"""The verbs of ``afa eagle``."""

from __future__ import annotations

import typer

eagle_app = typer.Typer(
    help="EAGLE: train a draft for speculative decoding, measure it, export it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
