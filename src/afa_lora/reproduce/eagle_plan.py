"""What an experiment with EAGLE drafts would take, worked out without training. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from afa_lora.core.errors import InvalidSettingError
from afa_lora.eagle.adapter import train_jointly
from afa_lora.eagle.conversations import load_conversations
from afa_lora.eagle.loss import draft_losses
from afa_lora.eagle.model import EagleConfig, EagleDraft
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.trainer import training_arguments
from afa_lora.reproduce.jobs import Experiment
from afa_lora.reproduce.plan import HOUR, TERA, model_parts
from afa_lora.reproduce.plan_text import GIB, NARROW, hours_text, print_arms, print_deviations, say
from afa_lora.reproduce.scales import EagleScale, PlanSettings
from afa_lora.sft.planning.estimate import Product
from afa_lora.sft.planning.timing import product_rate
from afa_lora.tuning.steps import count_steps, steps_in_epoch

LENGTH = 64  # of the conversation whose operations are counted; all but the attention's are proportional to it
MASK = (1, 1, LENGTH, LENGTH)  # given, because a causal one is not made without looking at numbers
TIMED = 1.0  # seconds
ADAM = 4  # tensors for each trained one: the weight, its gradient, and two of AdamW


@dataclass(frozen=True)
class Conversations:
    """What is trained on.

    Attributes:
        count: how many there are.
        tokens: in all of them.
        measured: whether they were tokenized; otherwise each counts as long as ``data.max_length`` allows.
    """

    count: int
    tokens: int
    measured: bool


@dataclass(frozen=True)
class DraftCost:
    """What the training of one draft takes.

    Attributes:
        parameters: that are trained.
        steps: optimizer steps.
        epochs: how often each conversation is seen.
        flops: additions and multiplications of all steps, each token of a conversation taken for one whose loss counts.
        memory: bytes of weights, gradients and optimizer in float32; activations come on top.
    """

    parameters: int
    steps: int
    epochs: float
    flops: float
    memory: int


@dataclass(frozen=True)
class DraftsPlan:
    """An experiment, worked out.

    Attributes:
        experiment: the experiment.
        conversations: what all arms are trained on.
        disk: bytes of the features.
        feature_flops: additions and multiplications of the target that writes them.
        costs: of one training by each method.
        rates: by device, additions and multiplications a second.
        speed: what the rates rest on.
    """

    experiment: Experiment
    conversations: Conversations
    disk: int
    feature_flops: float
    costs: Mapping[str, DraftCost]
    rates: Mapping[str, float]
    speed: str


def plan_drafts(experiment: Experiment, shapes: Path, report: Callable[[str], None] = print) -> DraftsPlan:
    """Work out disk, steps, operations and hours.

    Conversations are read if the experiment names their folder, and no weights.

    Args:
        experiment: from `load_experiment`.
        shapes: the folder in which ``plan.shape`` is looked for.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: a setting, the data or the target's configuration is at fault.
    """
    scale = experiment.scale
    assert isinstance(scale, EagleScale)
    config, tokenizer = model_parts(scale, shapes)
    conversations = _conversations(experiment, scale, tokenizer, report)
    recipes = {recipe.method: recipe for recipe in experiment.arms.values() if isinstance(recipe, Recipe)}
    costs: dict[str, DraftCost] = {method: _cost(recipe, config, conversations) for method, recipe in recipes.items()}
    rates, speed = _rates(scale.plan, config)
    size = torch.finfo(getattr(torch, scale.features.dtype)).bits // 8
    disk = conversations.tokens * config.hidden_size * size
    features = conversations.tokens * _feature_flops(config) / LENGTH
    return DraftsPlan(experiment, conversations, disk, features, costs, rates, speed)


def print_drafts(plan: DraftsPlan, console: Console) -> None:
    """Print what all arms share, the arms, what they take, and what those numbers rest on."""
    print_arms(plan.experiment, console)
    console.print(_table(plan))
    there, scale = plan.conversations, plan.experiment.scale
    assert isinstance(scale, EagleScale)
    if there.measured:
        say(console, f"Conversations: {there.count:,} with {there.tokens:,} tokens.")
    else:
        say(
            console,
            f"Conversations: {there.count:,}, each counted with the {scale.data.max_length} tokens of data.max_length; "
            "they are not measured without the data (--data) and the model's tokenizer.",
        )
    say(console, f"Disk: {plan.disk / GIB:,.1f} GiB for the features, which are written once for all arms.")
    say(
        console,
        f"Time: {plan.speed}. Every token is taken for one whose loss counts; those of the user cost less. The "
        "measuring comes on top: the target answers every question once, and each draft is scored on that. Several "
        "GPUs share the trainings out.",
    )
    print_deviations(plan.experiment, console)


def _conversations(
    experiment: Experiment,
    scale: EagleScale,
    tokenizer: PreTrainedTokenizerBase | None,
    report: Callable[[str], None],
) -> Conversations:
    recipe = experiment.jobs[0].recipe
    assert isinstance(recipe, Recipe)
    if experiment.data is not None and tokenizer is not None:
        train, _ = load_conversations(recipe.data, tokenizer, report)
        return Conversations(len(train), sum(map(len, train)), True)
    count = scale.data.limit or scale.plan.items
    if count is None:
        raise InvalidSettingError("How many conversations there are, the data say: give --data, or set plan.items.")
    return Conversations(count, count * scale.data.max_length, False)


def _cost(recipe: Recipe, config: PretrainedConfig, conversations: Conversations) -> DraftCost:
    args = training_arguments(recipe)
    steps = count_steps(args, conversations.count)
    epochs = steps / steps_in_epoch(args, conversations.count)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        draft = EagleDraft(EagleConfig.of_target(config, recipe.model, ""))
        linear = recipe.method.replace("afa-", "")  # it has the same products
        train_jointly(draft, recipe.model_copy(update={"method": linear}))
        embeddings, features, true = torch.randn(3, 1, LENGTH, config.hidden_size)
        head = torch.randn(config.vocab_size, config.hidden_size)
        predicted = draft(embeddings, features, torch.zeros(MASK))
        losses = draft_losses(predicted[0], true[0], head, LENGTH)
        (losses.feature.sum() + losses.token.sum()).backward()
        parameters = sum(parameter.numel() for parameter in draft.parameters())
    flops = epochs * conversations.tokens * counter.get_total_flops() / LENGTH
    return DraftCost(parameters, steps, epochs, flops, ADAM * 4 * parameters)


def _feature_flops(config: PretrainedConfig) -> int:
    """Additions and multiplications of the target for `LENGTH` tokens, without its output layer."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        target = AutoModelForCausalLM.from_config(config)
        target.base_model(torch.zeros(1, LENGTH, dtype=torch.long), torch.zeros(MASK), use_cache=False)
    return int(counter.get_total_flops())


def _rates(plan: PlanSettings, config: PretrainedConfig) -> tuple[dict[str, float], str]:
    if plan.gpus:
        peaks = ", ".join(f"{name} {peak:g}" for name, peak in plan.gpus.items())
        return (
            {name: plan.utilization * peak * TERA for name, peak in plan.gpus.items()},
            f"assumed, not measured: {plan.utilization:.0%} of the peak in dense bfloat16 products, in TFLOP/s {peaks}",
        )
    hidden = config.hidden_size
    rate = product_rate(Product(1, 256, hidden, 4 * hidden, torch.float32), "cpu", TIMED)
    return {"this cpu": rate}, f"timed on this machine's cpu: {rate / 1e9:,.0f} GFLOP/s in a product of the draft"


def _table(plan: DraftsPlan) -> Table:
    """The features, and what one training by each method takes."""
    table = Table("", "runs", "parameters", "steps", "state", *(f"hours, {device}" for device in plan.rates), **NARROW)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("features", "1", "", "", "", *_hours(plan, plan.feature_flops))
    trainings: Counter[str] = Counter(job.recipe.method for job in plan.experiment.jobs)
    for method, cost in plan.costs.items():
        state = f"{cost.memory / GIB:,.1f} GiB"
        row = (method, str(trainings[method]), f"{cost.parameters / 1e6:,.1f} M", f"{cost.steps:,}", state)
        table.add_row(*row, *_hours(plan, cost.flops))
    table.add_section()
    total = plan.feature_flops + sum(trainings[method] * cost.flops for method, cost in plan.costs.items())
    table.add_row("all", str(trainings.total()), "", "", "", *_hours(plan, total))
    return table


def _hours(plan: DraftsPlan, flops: float) -> list[str]:
    return [hours_text(flops / rate / HOUR) for rate in plan.rates.values()]
