"""TRL's `SFTTrainer`, set up by a recipe."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from afa_lora.data import Items, to_dataset
from afa_lora.sft.recipe import Recipe
from afa_lora.tuning import trainer as tuning
from afa_lora.tuning.trainer import ExactTraining, annealing, refused, set_callbacks


class ExactSFTTrainer(ExactTraining, SFTTrainer):
    """`SFTTrainer` that resumes exactly, and that raises instead of training on after a loss of NaN or infinity."""


def training_arguments(recipe: Recipe) -> SFTConfig:
    """The recipe's ``train`` section as TRL's `SFTConfig`, with defaults that fit this machine.

    Raises:
        RecipeError: `SFTConfig` refuses a value.
    """
    return tuning.training_arguments(SFTConfig, recipe, {})


def make_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    args: SFTConfig,
    recipe: Recipe,
) -> ExactSFTTrainer:
    """The trainer with the recipe's data and callbacks.

    Raises:
        RecipeError: TRL refuses settings that do not go together.
    """
    limit, args.save_total_limit = args.save_total_limit, None  # the sealer's task
    try:
        trainer = ExactSFTTrainer(
            model=model,
            args=args,
            train_dataset=to_dataset(items.train),
            eval_dataset=to_dataset(items.test) if items.test else None,
            processing_class=tokenizer,
            callbacks=annealing(recipe),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise refused(error, SFTConfig) from error
    set_callbacks(trainer, limit)
    return trainer
