"""The verb ``afa eagle features``."""

from __future__ import annotations

from typing import Annotated

import typer

from afa_cli.quiet import load_quietly
from afa_cli.recipes import find_recipe


def features(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name that afa recipes lists.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
) -> None:
    """Write the target's features of a recipe's conversations.

    The target reads every conversation once, and afa eagle train then needs it no more. Needs features.folder; says how
    much disk it takes before it starts. Started again after an interruption, it writes what is missing.

    \b
    Examples:
      afa eagle features my_recipe.yaml features.folder=features/llama
      afa eagle features my_recipe.yaml features.folder=features/llama data.limit=2000 data.max_length=1024
      afa eagle features my_recipe.yaml features.folder=features/exact features.dtype=float32
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.eagle.features import write_features
    from afa_lora.eagle.recipe import load_recipe
    from afa_lora.report.formats import duration, mebibytes

    console = Console()
    settings = load_recipe(find_recipe(recipe, "eagle"), overrides or [])
    summary = write_features(settings, console)
    speed = f", {summary.written_tokens / summary.seconds:,.0f} tokens/s" if summary.written else ""
    console.print(
        f"{summary.tokens:,} tokens in {summary.files} file(s), {mebibytes(summary.size)} MiB, in {summary.folder}; "
        f"{summary.written} written now in {duration(summary.seconds)}{speed}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
