"""The verb ``afa eagle train``."""

from __future__ import annotations

from typing import Annotated

import typer

from afa_cli.quiet import load_quietly
from afa_cli.recipes import find_recipe
from afa_cli.training import carry_out


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name that afa recipes lists.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; nothing is trained or written.")
    ] = False,
) -> None:
    """Train a draft by a recipe, test, merge.

    The draft's own weights are trained and, beside them, the adapter that the method names; merged, it is an ordinary
    draft. Reads what afa eagle features wrote, or lets the target run along if features.folder is not set. Started
    again after an interruption, it goes on from its last good checkpoint.

    \b
    Examples:
      afa eagle train quickstart --dry-run
      afa eagle train quickstart method=eagle+lora output=runs/eagle-lora
      afa eagle train my_recipe.yaml anneal.activation=gelu anneal.anneal_end=0.1
      afa eagle train my_recipe.yaml start=runs/eagle-lora/draft train.learning_rate=1e-5
      accelerate launch --num_processes 8 -m afa_cli eagle train my_recipe.yaml
    """
    load_quietly()
    from afa_lora.eagle.planning import plan_eagle, print_plan
    from afa_lora.eagle.recipe import load_recipe
    from afa_lora.eagle.run import run_eagle
    from afa_lora.eagle.summary import print_result

    settings = load_recipe(find_recipe(recipe, "eagle"), overrides or [])
    carry_out(settings, dry_run, plan_eagle, print_plan, run_eagle, print_result)
