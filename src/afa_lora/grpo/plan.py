"""The dry run of a GRPO training: everything is read and checked, the reward functions are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trl import GRPOConfig

from afa_lora import Schedule
from afa_lora.core.errors import AfaLoraError
from afa_lora.data import Gsm8kData, Sample
from afa_lora.data.load import load_prompts
from afa_lora.data.prompts import drop_long_items
from afa_lora.grpo.checks import prompts_of, settings_faults
from afa_lora.grpo.judging import load_rewards
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.trainer import training_arguments
from afa_lora.models import read_parts
from afa_lora.running.checkpoints import newest
from afa_lora.settings import RecipeError
from afa_lora.training.callback import forward_passes, updates_per_generation
from afa_lora.tuning.adapter import adapter_config
from afa_lora.tuning.folder import RunFolder
from afa_lora.tuning.loading import Precision, check_quantization, model_options, training_precision, use_chat_template

TRIED = 8  # right answers that the reward functions judge


@dataclass(frozen=True)
class Plan:
    """A recipe, worked out.

    Attributes:
        recipe: the recipe.
        args: the trainer's configuration.
        precision: the dtypes, and why.
        train: training prompts.
        test: test prompts.
        dropped: how many training prompts are too long.
        steps: optimizer steps in all.
        updates: U, optimizer steps for which β is held.
        window: from which to which step β falls; ``None`` without annealing.
        right_answers: the reward of each of the first items' right answer, as the data have it.
        resumes: the step from which an interrupted run of this recipe in the output folder would go on; ``None`` if
            there is no such run.
    """

    recipe: Recipe
    args: GRPOConfig
    precision: Precision
    train: int
    test: int
    dropped: int
    steps: int
    updates: int
    window: tuple[float, float] | None
    right_answers: tuple[float, ...]
    resumes: int | None


def plan_grpo(recipe: Recipe, report: Callable[[str], None] = print) -> Plan:
    """Check everything that can be checked without training.

    Args:
        recipe: what would be done.
        report: takes a line for each thing that is read.

    Raises:
        AfaLoraError: what is wrong.
    """
    args, precision = training_arguments(recipe), training_precision(recipe)
    folder = RunFolder(recipe.output)
    resumes = _step_of(folder) if folder.check(recipe) else None
    if recipe.load.quantization:
        check_quantization(recipe)
    if recipe.method != "full":
        adapter_config(recipe)
    rewards = load_rewards(recipe)
    items = load_prompts(recipe.data, report)
    tokenizer = read_parts(recipe.model, **model_options(recipe)).tokenizer
    if tokenizer is None:
        raise AfaLoraError(f"model={recipe.model!r} has no tokenizer. Training needs it.")
    use_chat_template(recipe, tokenizer)
    items, dropped, _ = drop_long_items(items, tokenizer, recipe.max_prompt_length)
    if faults := list(settings_faults(recipe, args, items)):
        raise RecipeError("\n  ".join(["This recipe cannot be run:", *faults]))
    tried = items.train[:TRIED]
    steps = count_steps(args, len(items.train))
    return Plan(
        recipe=recipe,
        args=args,
        precision=precision,
        train=len(items.train),
        test=len(items.test),
        dropped=dropped,
        steps=steps,
        updates=updates_per_generation(args),
        window=_window(recipe, steps),
        right_answers=tuple(rewards.of_answers(tried, _right_answers(recipe, tried), tokenizer)),
        resumes=resumes,
    )


def count_steps(args: GRPOConfig, prompts: int) -> int:
    """Optimizer steps in all, as `transformers.Trainer` counts them over TRL's repeated prompts."""
    if args.max_steps > 0:
        return args.max_steps
    passes = prompts // prompts_of(args) * forward_passes(args)  # of each process, in an epoch
    per_epoch = max(-(-passes // args.gradient_accumulation_steps), 1)
    return -int(-args.num_train_epochs * per_epoch // 1)


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan as a table."""
    table = Table(show_header=False)
    for name, text in _rows(plan):
        table.add_row(Text(name), Text(text))
    console.print(table)


def _rows(plan: Plan) -> list[tuple[str, str]]:
    recipe, args = plan.recipe, plan.args
    dropped = f", {plan.dropped} longer than max_prompt_length left out" if plan.dropped else ""
    # TRL keeps the old log-probabilities only where the policy changes between a generation and its last update.
    per_step = args.gradient_accumulation_steps // forward_passes(args)  # generations; 0 where one serves several steps
    aligned = per_step > 0 and recipe.rollout == "transformers"
    serves = f"a generation serves {plan.updates}" if per_step < 2 else f"each has {per_step} generations"
    completions = f"{args.num_generations} completions of at most {args.max_completion_length} tokens"
    mean = sum(plan.right_answers) / len(plan.right_answers)
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    rows = [
        ("model", f"{recipe.model}, {plan.precision}"),
        ("method", recipe.method),
        ("prompts", f"{plan.train:,} to train on, {plan.test:,} to test on{dropped}"),
        ("a generation", f"{prompts_of(args)} prompts × {completions}, by {recipe.rollout}"),
        ("optimizer steps", f"{plan.steps:,}; {serves}"),
        ("old log-probabilities", "those of the update itself" if aligned else "computed at the generation"),
        ("rewards", ", ".join(f"{reward.function} × {reward.weight:g}" for reward in recipe.rewards)),
        ("right answers", f"mean reward {mean:.3f} on the data's own first {len(plan.right_answers)}"),
        ("KL", f"{args.beta:g}, against the model without its adapter" if args.beta else "none"),
        ("learning rate", f"{args.learning_rate:g}, {schedule}"),
    ]
    if plan.window is not None:
        start, end = plan.window
        fall = f"1 → 0, {recipe.anneal.schedule}, over steps {start:g} to {end:g}"
        held = f", held for {plan.updates} steps at a time" if plan.updates > 1 else ""
        rows.append(("β", f"{fall}{held}; {recipe.anneal.activation} at {recipe.anneal.placement}"))
    rows.append(("processes", f"{PartialState().num_processes}"))
    if plan.resumes is not None:
        rows.append(("goes on", f"from step {plan.resumes} of the interrupted run in {recipe.output}"))
    return rows


def _window(recipe: Recipe, steps: int) -> tuple[float, float] | None:
    if not recipe.anneals:
        return None
    return Schedule(recipe.anneal.schedule, recipe.anneal.anneal_start, recipe.anneal.anneal_end).window(steps)


def _right_answers(recipe: Recipe, samples: list[Sample]) -> list[str]:
    """What the data give as a model answer: of GSM8K the worked one, whose form the rule asks for."""
    worked = isinstance(recipe.data, Gsm8kData)
    return [str(sample.entry["answer"]) if worked else sample.completion for sample in samples]


def _step_of(folder: RunFolder) -> int:
    checkpoint = newest(folder.checkpoints)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
