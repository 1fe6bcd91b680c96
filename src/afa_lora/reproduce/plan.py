"""What an experiment of supervised fine-tunings would take, worked out without training. Nothing is written."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl import SFTConfig

from afa_lora.core.errors import InvalidSettingError, unknown_name
from afa_lora.data import load_data
from afa_lora.data.lengths import ItemLength, item_lengths, row_lengths
from afa_lora.models import EMBEDDED, read_parts
from afa_lora.reproduce.jobs import Experiment
from afa_lora.reproduce.scales import EagleScale, PlanSettings, SftScale
from afa_lora.settings import RecipeError
from afa_lora.sft import Recipe
from afa_lora.sft.checks import training_faults
from afa_lora.sft.planning.estimate import StepEstimate, estimate_step
from afa_lora.sft.planning.shape import shape_model
from afa_lora.sft.planning.timing import measure_speed
from afa_lora.sft.trainer import training_arguments
from afa_lora.tuning.checks import check_optimizer
from afa_lora.tuning.loading import training_precision, use_chat_template
from afa_lora.tuning.steps import count_steps, steps_in_epoch

HOUR, TERA = 3600, 1e12

Lengths = list[ItemLength] | int
"""The items' lengths, or only how many items there are."""


@dataclass(frozen=True)
class Rows:
    """The sequences of one epoch.

    Attributes:
        count: how many there are.
        tokens: in all of them.
        padded: the same, each batch padded to its longest sequence.
        longest: the longest sequence.
        measured: whether they were tokenized; otherwise each counts as long as ``train.max_length`` allows.
    """

    count: int
    tokens: int
    padded: int
    longest: int
    measured: bool


@dataclass(frozen=True)
class Cost:
    """What one training takes on one device.

    Attributes:
        rows: the sequences of one epoch.
        steps: optimizer steps.
        tokens: in all steps, without padding.
        memory: bytes held at a time at most.
        flops: additions and multiplications, those on padding and those of recomputed activations included.
        hours: by device.
    """

    rows: Rows
    steps: int
    tokens: int
    memory: int
    flops: float
    hours: Mapping[str, float]


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment, worked out.

    Attributes:
        experiment: the experiment.
        costs: of one training by each method.
        speed: what the hours rest on.
    """

    experiment: Experiment
    costs: Mapping[str, Cost]
    speed: str

    def hours(self, device: str) -> float:
        """Hours of all trainings, one after the other."""
        return sum(self.costs[job.recipe.method].hours[device] for job in self.experiment.jobs)


def plan_experiment(experiment: Experiment, shapes: Path, report: Callable[[str], None] = print) -> ExperimentPlan:
    """Work out steps, tokens, memory and hours of every arm.

    Data are read if the experiment names their folder, and no weights. Arms of one method share an estimate: they
    differ in their annealing alone, which changes no memory, and the products by a hundredth at most.

    Args:
        experiment: from `load_experiment`.
        shapes: the folder in which ``plan.shape`` is looked for.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: a setting, the data or the model's configuration is at fault.
    """
    scale = experiment.scale
    assert isinstance(scale, SftScale)
    config, tokenizer = model_parts(scale, shapes)
    recipes = {recipe.method: recipe for recipe in experiment.arms.values() if isinstance(recipe, Recipe)}
    items = _items(experiment, scale, next(iter(recipes.values())), tokenizer, report)
    costs: dict[str, Cost] = {}
    for method, recipe in recipes.items():
        report(f"Estimating a step of {method} …")
        costs[method], speed = _cost(scale.plan, recipe, config, items)
    return ExperimentPlan(experiment, costs, speed)


def model_parts(scale: SftScale | EagleScale, shapes: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase | None]:
    """The model's configuration and its tokenizer; of a model that is not here, the shape that stands in for it."""
    model, shape = scale.model, scale.plan.shape
    if model in EMBEDDED or Path(model).expanduser().is_dir() or shape is None:
        parts = read_parts(model)
        return parts.config, parts.tokenizer
    known = sorted(folder.parent.name for folder in shapes.glob("*/config.json"))
    if shape not in known:
        raise unknown_name("plan.shape", shape, known)
    return read_parts(str(shapes / shape)).config, None


def _items(
    experiment: Experiment,
    scale: SftScale,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Callable[[str], None],
) -> Lengths:
    """The training items, tokenized where data and tokenizer are there, else their number."""
    count = scale.data.train_items or scale.plan.items
    if experiment.data is not None:
        samples = load_data(recipe.data, report).train
        if tokenizer is not None:
            use_chat_template(recipe, tokenizer)
            return item_lengths(samples, tokenizer, training_arguments(recipe))
        count = len(samples)
    if count is None:
        raise InvalidSettingError("How many train items there are, the data say: give --data, or set plan.items.")
    return count


def _rows(items: Lengths, args: SFTConfig) -> Rows:
    """The sequences that a training makes of the items in one epoch."""
    if isinstance(items, list):
        lengths = row_lengths(items, args)
        return Rows(len(lengths), sum(lengths), _padded(lengths, args.per_device_train_batch_size), max(lengths), True)
    if args.max_length is None:
        raise InvalidSettingError("train.max_length is needed to know how long items are. Set it, or give --data.")
    tokens = items * args.max_length
    return Rows(items, tokens, tokens, args.max_length, False)


def _padded(lengths: Sequence[int], batch: int) -> int:
    """Tokens and padding of the batches of one random order."""
    shuffled = random.Random(0).sample(lengths, len(lengths))
    batches = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    return sum(len(group) * max(group) for group in batches)


def _cost(plan: PlanSettings, recipe: Recipe, config: PretrainedConfig, items: Lengths) -> tuple[Cost, str]:
    """What a training takes, and what its hours rest on.

    Raises:
        RecipeError: the training would refuse a setting.
    """
    args = training_arguments(recipe)
    shape = shape_model(recipe, args, config)
    rows = _rows(items, args)
    steps = count_steps(args, rows.count)
    epochs = steps / steps_in_epoch(args, rows.count) if args.max_steps > 0 else args.num_train_epochs
    check_optimizer(args, shape.model, steps)
    if faults := list(training_faults(args, None)):
        raise RecipeError("\n  ".join(["The arms cannot be run:", *faults]))
    step = estimate_step(recipe, args, shape, rows.longest)
    share = epochs * rows.padded / step.tokens  # batches as large as the estimated one
    hours, speed = _hours(plan, step, share, training_precision(recipe).device)
    return Cost(rows, steps, round(epochs * rows.tokens), step.total, share * step.work.flops, hours), speed


def _hours(plan: PlanSettings, step: StepEstimate, share: float, device: str) -> tuple[dict[str, float], str]:
    """Hours by device for ``share`` times the estimated batch."""
    if not plan.gpus:
        speed = measure_speed(step.work, device)
        return {f"this {device}": share * speed.seconds / HOUR}, str(speed)
    reached = {name: plan.utilization * peak * TERA for name, peak in plan.gpus.items()}
    peaks = ", ".join(f"{name} {peak:g}" for name, peak in plan.gpus.items())
    return (
        {name: share * step.work.flops / rate / HOUR for name, rate in reached.items()},
        f"assumed, not measured: {plan.utilization:.0%} of the peak in dense bfloat16 products, in TFLOP/s {peaks}",
    )
