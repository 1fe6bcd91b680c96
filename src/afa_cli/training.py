"""The verbs that train: ``afa sft``, ``afa grpo`` and ``afa demo``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from afa_cli.quiet import load_quietly
from afa_cli.recipes import find_recipe

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")  # a recipe
P = TypeVar("P")  # a plan
T = TypeVar("T")  # what a training gives


def carry_out(
    recipe: R,
    dry_run: bool,
    plan: Callable[[R, Callable[[str], None]], P],
    print_plan: Callable[[P, Console], None],
    run: Callable[[R, Console], T],
    print_result: Callable[[T, Console], None],
) -> None:
    """Plan a training and print the plan, or run it and print what it gave, which the first process does."""
    from accelerate import PartialState
    from rich.console import Console

    console = Console()
    if dry_run:
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        print_plan(plan(recipe, say), console)
        return
    result, processes = run(recipe, console), PartialState()
    if processes.is_main_process:
        print_result(result, console)
    processes.destroy_process_group()


def sft(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name that afa recipes lists.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; nothing is trained or written.")
    ] = False,
) -> None:
    """Fine-tune by a recipe, test, merge.

    The loss is on the completions; the test is by generated answers; adapter and merged model are saved. Started again
    after an interruption, it goes on from its last good checkpoint.

    \b
    Examples:
      afa sft quickstart
      afa sft quickstart method=lora output=runs/lora
      afa sft my_recipe.yaml train.learning_rate=1e-4 anneal.activation=gelu --dry-run
      afa sft my_recipe.yaml model=meta-llama/Llama-3.2-1B-Instruct load.quantization=4bit
      accelerate launch --num_processes 8 -m afa_cli sft my_recipe.yaml
    """
    load_quietly()
    from afa_lora.sft import load_recipe, run_sft
    from afa_lora.sft.planning import plan_sft, print_plan
    from afa_lora.sft.summary import print_result

    settings = load_recipe(find_recipe(recipe), overrides or [])
    carry_out(settings, dry_run, plan_sft, print_plan, run_sft, print_result)


def grpo(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name that afa recipes lists.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; nothing is trained or written.")
    ] = False,
) -> None:
    """Train by reinforcement learning (GRPO), test, merge.

    The model samples several completions for each prompt, reward functions judge them, and it learns from the better
    ones. Sampling goes through the annealed adapter as it is at that step; its strength is held from a generation to
    the last update that uses it. Started again after an interruption, it goes on from its last good checkpoint.

    \b
    Examples:
      afa grpo quickstart
      afa grpo quickstart method=lora output=runs/grpo-lora
      afa grpo my_recipe.yaml rewards=my_rewards:score train.num_generations=16 --dry-run
      afa grpo gsm8k model=Qwen/Qwen2.5-3B-Instruct rollout=vllm-exact
      accelerate launch --num_processes 8 -m afa_cli grpo my_recipe.yaml
    """
    load_quietly()
    from afa_lora.grpo.plan import plan_grpo, print_plan
    from afa_lora.grpo.recipe import load_recipe
    from afa_lora.grpo.run import run_grpo
    from afa_lora.grpo.summary import print_result

    settings = load_recipe(find_recipe(recipe, "grpo"), overrides or [])
    carry_out(settings, dry_run, plan_grpo, print_plan, run_grpo, print_result)


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder for adapters, merged models and curves.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small model as LoRA and as AFA-LoRA.

    Teaches SmolLM2-135M-Instruct arithmetic that it cannot do yet, twice with the same data, order and start; merges,
    checks, and compares on held-out items. Takes a few minutes on 2 cores and needs no network.

    \b
    Example:
      afa demo
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.sft.demo import run_demo

    run_demo(out, Console())
