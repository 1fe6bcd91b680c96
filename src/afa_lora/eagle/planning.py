"""The dry run of a draft's training: everything is read and checked, nothing is trained or written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainingArguments

from afa_lora import Schedule
from afa_lora.eagle.adapter import train_jointly
from afa_lora.eagle.inputs import target_dtype
from afa_lora.eagle.model import EagleConfig, EagleDraft
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.sources import count, faults, first_draft, open_sources
from afa_lora.eagle.target import TargetEnds
from afa_lora.eagle.trainer import training_arguments
from afa_lora.running.checkpoints import newest
from afa_lora.settings import RecipeError
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.failures import GIB
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.loading import Precision, training_precision
from afa_lora.tuning.steps import count_steps

ADAM_NUMBERS = 2  # for each weight, as many bytes as it has


@dataclass(frozen=True)
class Plan:
    """A recipe, worked out.

    Attributes:
        recipe: the recipe.
        args: the Trainer's configuration.
        precision: the draft's dtypes, and why.
        draft: parameters of the draft itself.
        adapter: parameters of the adapter beside it; 0 without one.
        conversations: to train on, and held out.
        tokens: of those to train on.
        positions: of those to train on, where the loss counts.
        steps: optimizer steps in all.
        window: from which to which step β falls; ``None`` without annealing.
        resumes: the step from which an interrupted run of this recipe would go on; ``None`` if there is none.
    """

    recipe: Recipe
    args: TrainingArguments
    precision: Precision
    draft: int
    adapter: int
    conversations: tuple[int, int]
    tokens: int
    positions: int
    steps: int
    window: tuple[float, float] | None
    resumes: int | None

    @property
    def checkpoint_bytes(self) -> int:
        """A checkpoint: weights and optimizer."""
        return (self.draft + self.adapter) * self.precision.weights.itemsize * (1 + ADAM_NUMBERS)

    @property
    def disk_bytes(self) -> int:
        """All checkpoints that lie there at once, the one being written included, and the merged draft."""
        kept = self.args.save_total_limit or _saves(self.args, self.steps)
        checkpoints = min(kept + 1, _saves(self.args, self.steps))
        return checkpoints * self.checkpoint_bytes + self.draft * self.precision.weights.itemsize


def plan_eagle(recipe: Recipe, report: Callable[[str], None] = print) -> Plan:
    """Check everything that can be checked without training.

    Args:
        recipe: what would be done.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: what is wrong.
    """
    args, precision, folder = training_arguments(recipe), training_precision(recipe), RunFolder(recipe.output)
    checkpoint = newest(folder.checkpoints) if folder.check(recipe) else None
    ends = TargetEnds.load(recipe.model, dtype=precision.compute)
    sources = open_sources(recipe, ends, report)
    if found := list(faults(recipe, args, sources)):
        raise RecipeError("\n  ".join(["This recipe cannot be run:", *found]))
    if recipe.start is not None:
        first_draft(recipe, ends, precision.weights)
    with torch.device("meta"):
        draft = EagleDraft(EagleConfig.of_target(ends.config, ends.name, ends.digest))
        own = draft.num_parameters()
        train_jointly(draft, recipe)
    steps = count_steps(args, len(sources.train))
    check_optimizer(args, draft, steps)
    tokens, positions = count(sources.train)
    schedule = Schedule(recipe.anneal.schedule, recipe.anneal.anneal_start, recipe.anneal.anneal_end)
    return Plan(
        recipe=recipe,
        args=args,
        precision=precision,
        draft=own,
        adapter=draft.num_parameters() - own,
        conversations=(len(sources.train), len(sources.test) if sources.test else 0),
        tokens=tokens,
        positions=positions,
        steps=steps,
        window=schedule.window(steps) if recipe.anneals else None,
        resumes=int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
    )


def _saves(args: TrainingArguments, steps: int) -> int:
    """How many checkpoints the whole training writes."""
    if args.save_strategy == "no":
        return 0
    if args.save_strategy == "epoch":
        return math.ceil(args.num_train_epochs)
    every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
    return math.ceil(steps / every)


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan as a table."""
    table = Table(show_header=False)
    for name, text in _rows(plan):
        table.add_row(Text(name), Text(text))
    console.print(table)


def _rows(plan: Plan) -> list[tuple[str, str]]:
    recipe, args = plan.recipe, plan.args
    train, test = plan.conversations
    beside = f", and {plan.adapter:,} of the adapter beside them" if plan.adapter else ""
    if recipe.features.folder is None:
        target = f"running along, frozen, in {str(target_dtype(recipe)).removeprefix('torch.')}"
    else:
        target = f"its features from {recipe.features.folder}"
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    free = shutil.disk_usage(next(f for f in (recipe.output, *recipe.output.resolve().parents) if f.exists())).free
    rows = [
        ("target", f"{recipe.model}, {target}"),
        ("method", f"{recipe.method}, {plan.precision}"),
        ("draft", f"{f'from {recipe.start}' if recipe.start else 'new'}; {plan.draft:,} parameters trained{beside}"),
        ("conversations", f"{train:,} to train on, {test:,} held out"),
        ("positions that count", f"{plan.positions:,} of {plan.tokens:,} tokens in an epoch"),
        ("optimizer steps", f"{plan.steps:,}"),
        ("learning rate", f"{args.learning_rate:g}, {schedule}"),
    ]
    if plan.window is not None:
        fall = "1 → 0, {}, over steps {:g} to {:g}".format(recipe.anneal.schedule, *plan.window)
        rows.append(("β", f"{fall}; {recipe.anneal.activation} at {recipe.anneal.placement}"))
    disk = f"{plan.disk_bytes / GIB:.2f} GiB at most, {plan.checkpoint_bytes / GIB:.2f} a checkpoint"
    rows.append(("disk", f"{disk}; {free / GIB:.1f} GiB are free"))
    rows.append(("processes", f"{PartialState().num_processes}"))
    if plan.resumes is not None:
        rows.append(("goes on", f"from step {plan.resumes} of the interrupted run in {recipe.output}"))
    return rows
