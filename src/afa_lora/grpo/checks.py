"""What a GRPO training would refuse only after it has started, or do otherwise than asked."""

from __future__ import annotations

from collections.abc import Iterator

from transformers.trainer_utils import IntervalStrategy
from trl import GRPOConfig

from afa_lora.data import Items
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.rollout.rules import rollout_faults
from afa_lora.settings import RecipeError
from afa_lora.tuning.checks import reporting_faults
from afa_lora.tuning.trainer import is_sharded


def check_settings(recipe: Recipe, args: GRPOConfig, items: Items | None = None) -> None:
    """Look at what settings say together.

    Raises:
        RecipeError: one line for each thing that is wrong.
    """
    if faults := list(settings_faults(recipe, args, items)):
        raise RecipeError("\n  ".join(["This recipe cannot be run:", *faults]))


def settings_faults(recipe: Recipe, args: GRPOConfig, items: Items | None) -> Iterator[str]:
    """One line for each thing that is wrong."""
    if is_sharded(args):
        yield (
            "FSDP: sharded weights cannot sample through the live adapter here. Without it every GPU has the whole "
            "model (several GPUs do train together), or take verl for models that do not fit: docs/verl.md."
        )
    if args.use_transformers_continuous_batching:
        yield (
            "train.use_transformers_continuous_batching=true: it does not tell the probabilities of what it samples, "
            "by which this trainer proves that it is on-policy. Leave it out."
        )
    if items is not None:
        yield from item_faults(args, items)
    yield from rollout_faults(recipe, args)
    yield from reporting_faults(args)


def prompts_of(args: GRPOConfig) -> int:
    """How many different prompts a generation is for, over all processes."""
    assert args.generation_batch_size is not None  # `GRPOConfig` has worked both out
    assert args.num_generations is not None
    return args.generation_batch_size // args.num_generations


def item_faults(args: GRPOConfig, items: Items) -> Iterator[str]:
    """What the items are too few for."""
    prompts = prompts_of(args)  # TRL leaves an incomplete generation out
    if len(items.train) < prompts:
        yield (
            f"A generation is for {prompts} prompts ({args.generation_batch_size} completions, "
            f"train.num_generations={args.num_generations}), and there are only {len(items.train)}. Lower "
            "train.steps_per_generation, train.gradient_accumulation_steps or train.per_device_train_batch_size, or "
            "take more items."
        )
    if not items.test and args.eval_strategy != "no":
        strategy = IntervalStrategy(args.eval_strategy).value
        yield (
            f"train.eval_strategy={strategy!r} needs test items, and there are none. Raise data.test_items, or set "
            "train.eval_strategy=no."
        )
