"""What a GRPO training would refuse only after it has started, or do otherwise than asked."""

from __future__ import annotations

from collections.abc import Iterator

from transformers.trainer_utils import IntervalStrategy
from trl import GRPOConfig

from afa_lora.data import Items
from afa_lora.grpo.recipe import Recipe
from afa_lora.grpo.rollout.rules import rollout_faults
from afa_lora.peft.config import LINEAR_STARTS
from afa_lora.settings import RecipeError
from afa_lora.training.callback import forward_passes
from afa_lora.tuning.checks import reporting_faults
from afa_lora.tuning.trainer import is_sharded

NOT_SAMPLING = {"num_beams", "num_return_sequences", "do_sample", "max_new_tokens", "max_length", "penalty_alpha"}
METRICS = ("reward", "accuracy")


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
    yield from policy_faults(recipe, args)
    yield from reference_faults(recipe, args)
    yield from rollout_faults(recipe, args)
    yield from reporting_faults(args)


def policy_faults(recipe: Recipe, args: GRPOConfig) -> Iterator[str]:
    """What would let generation and update see two policies."""
    passes, accumulation = forward_passes(args), args.gradient_accumulation_steps
    if passes % accumulation and accumulation % passes:
        yield (
            f"A generation serves {passes} forward passes (train.steps_per_generation · train.num_iterations), a step "
            f"takes train.gradient_accumulation_steps={accumulation}: generations would end within steps, whose β they "
            "cannot share. Let one be a multiple of the other."
        )
    if not args.disable_dropout:
        yield (
            "train.disable_dropout=false: each forward would draw another mask, so the ratio of new to old "
            "probabilities would compare two different policies. Leave it out."
        )
    given = args.generation_kwargs or {}
    assert not isinstance(given, str)  # `GRPOConfig` has parsed it
    for key in sorted(given.keys() & (GRPOConfig.__dataclass_fields__.keys() | NOT_SAMPLING)):
        yield (
            f"train.generation_kwargs.{key}={given[key]!r}: the completions would not be sampled from the policy that "
            f"is trained. {f'Set train.{key}.' if key in GRPOConfig.__dataclass_fields__ else 'Leave it out.'}"
        )
    metric = str(args.metric_for_best_model or "reward").removeprefix("eval_").removeprefix("linear_")
    if metric not in METRICS:
        yield f"train.metric_for_best_model={args.metric_for_best_model!r}: a test gives {' and '.join(METRICS)}."


def reference_faults(recipe: Recipe, args: GRPOConfig) -> Iterator[str]:
    """What would make another model than the base model the reference of the KL divergence."""
    if args.sync_ref_model:
        yield "train.sync_ref_model=true: the moving reference would be lost at a resume. Leave it out."
    start, bias = recipe.adapter.get("init_lora_weights", True), recipe.adapter.get("bias", "none")
    if args.beta and recipe.method != "full" and isinstance(start, str) and start not in LINEAR_STARTS:
        yield (
            f"train.beta={args.beta:g} with adapter.init_lora_weights={start!r}: it moves a part of the base weights "
            "into the adapter, and the reference is the model without its adapter. Set train.beta=0, or leave it out."
        )
    if args.beta and recipe.method != "full" and bias != "none":
        yield (
            f"train.beta={args.beta:g} with adapter.bias={bias!r}: trained biases stay when the adapter is disabled, "
            "and the reference would move with them. Set train.beta=0, or leave adapter.bias out."
        )
    options = recipe.train.get("model_init_kwargs")
    if options and (recipe.rollout != "transformers" or (args.beta and recipe.method == "full")):
        loads = "vLLM" if recipe.rollout != "transformers" else "TRL's reference model"
        yield (
            f"train.model_init_kwargs={options!r}: {loads} is loaded without them, and may be another model. Download "
            "what you mean into a folder, and name that as the model."
        )


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
