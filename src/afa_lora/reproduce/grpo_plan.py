"""What an experiment of GRPO trainings would do, worked out without training. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from afa_lora.grpo.recipe import Recipe
from afa_lora.reproduce.jobs import Experiment
from afa_lora.reproduce.plan_text import NARROW, NONE, listed, print_arms, print_deviations, say
from afa_lora.reproduce.scales import GrpoScale

if TYPE_CHECKING:
    from afa_lora.grpo.plan import Plan


def plan_trainings(experiment: Experiment, report: Callable[[str], None] = print) -> dict[str, Plan]:
    """Check everything that can be checked without training: one plan for each method, whose arms differ in β alone.

    Args:
        experiment: from `load_experiment`.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: a setting, the data, a reward function or the model is at fault.
    """
    from afa_lora.grpo.plan import plan_grpo

    plans: dict[str, Plan] = {}
    for job in experiment.jobs:
        if isinstance(job.recipe, Recipe) and job.recipe.method not in plans:
            elsewhere = job.run.path.with_name("plan")  # the run itself may be finished
            recipe = job.recipe.model_copy(update={"output": elsewhere})
            plans[job.recipe.method] = plan_grpo(recipe, report)
    return plans


def print_trainings(experiment: Experiment, plans: dict[str, Plan], console: Console) -> None:
    """Print what all arms share, the arms, and what they take."""
    scale = experiment.scale
    assert isinstance(scale, GrpoScale)
    rewards = ", ".join(f"{reward.function} × {reward.weight:g}" for reward in scale.rewards)
    print_arms(experiment, console, [("rewards", f"{rewards}; {listed({'rollout': scale.rollout})}")])
    console.print(_table(experiment, plans))
    say(console, "Time: it depends on how long the answers are; the progress of the first arm tells it.")
    print_deviations(experiment, console)


def _table(experiment: Experiment, plans: dict[str, Plan]) -> Table:
    """What one training by each method takes."""
    heads = ("runs", "prompts", "test items", "steps", "steps a generation", "completions", "tokens at most")
    table = Table("method", *heads, **NARROW)
    for column in table.columns[1:]:
        column.justify = "right"
    trainings: Counter[str] = Counter(job.recipe.method for job in experiment.jobs)
    for method, plan in plans.items():
        args = plan.args
        completions = plan.steps * args.gradient_accumulation_steps * args.per_device_train_batch_size
        completions //= args.num_iterations  # each is learnt from so often
        table.add_row(
            method,
            str(trainings[method]),
            f"{plan.train:,}",
            f"{plan.test:,}",
            f"{plan.steps:,}",
            str(plan.updates),
            f"{completions:,}",
            f"{completions * args.max_completion_length:,}" if args.max_completion_length else NONE,
        )
    return table
