"""TRL's `SFTTrainer`, set up by a recipe."""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import is_torch_cuda_available, strtobool
from trl import SFTConfig, SFTTrainer

from afa_lora import AnnealingCallback
from afa_lora.data import Items, to_dataset
from afa_lora.running.checkpoints import CheckpointSealer, NonFiniteError
from afa_lora.running.logging_state import LoggingState
from afa_lora.settings import RecipeError, in_our_words
from afa_lora.sft.loading import precision_flags, training_device
from afa_lora.sft.recipe import Recipe

APPLIED_BEFORE = {"model_init_kwargs", "chat_template_path"}  # by the time that TRL gets model and tokenizer


class ExactSFTTrainer(SFTTrainer):
    """`SFTTrainer` that resumes exactly, and that raises instead of training on after a loss of NaN or infinity."""

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:  # type: ignore[override]
        """Train, from a checkpoint if one is given, with the logs of an uninterrupted training."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, LoggingState):
                callback.checkpoint = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed from its last checkpoint, the Trainer would take one step more before it looks at max_steps.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the weights are those of the step before.
        """
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss


def training_arguments(recipe: Recipe) -> SFTConfig:
    """The recipe's ``train`` section as TRL's `SFTConfig`, with defaults that fit this machine.

    Raises:
        RecipeError: `SFTConfig` refuses a value.
    """
    if recipe.train.get("save_only_model"):
        raise RecipeError("train.save_only_model=true: a run could not be resumed from such checkpoints. Leave it out.")
    settings: dict[str, Any] = {
        "output_dir": str(recipe.output / "checkpoints"),
        "disable_tqdm": True,
        "dataloader_pin_memory": is_torch_cuda_available(),
        "logging_nan_inf_filter": False,  # a NaN stops the training
        "use_cpu": training_device(recipe) == "cpu",  # unless this is said, several processes would not see each other
        "ddp_find_unused_parameters": False,
        "hub_model_id": recipe.output.name if recipe.train.get("push_to_hub") else None,  # else "checkpoints"
        **precision_flags(recipe),
        **{key: value for key, value in recipe.train.items() if key not in APPLIED_BEFORE},
    }
    try:
        return SFTConfig(**settings)
    except (TypeError, ValueError) as error:
        raise _refused(error) from error


def is_sharded(args: SFTConfig) -> bool:
    """Whether the Trainer will share the model's weights out among the processes (FSDP)."""
    return bool(args.fsdp) or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) == 1


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
    annealing: list[TrainerCallback] = [AnnealingCallback()] if recipe.anneals else []
    try:
        trainer = ExactSFTTrainer(
            model=model,
            args=args,
            train_dataset=to_dataset(items.train),
            eval_dataset=to_dataset(items.test) if items.test else None,
            processing_class=tokenizer,
            callbacks=annealing,
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise _refused(error) from error
    for callback in (PrinterCallback, ProgressCallback, TensorBoardCallback):  # ours stand in for them
        trainer.remove_callback(callback)
    for own in (LoggingState(trainer), CheckpointSealer(limit)):  # in this order: what is sealed is whole
        trainer.add_callback(own)
    if recipe.anneals:  # before W&B and its like, so that they see β among the logs
        trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, AnnealingCallback))
    return trainer


def _refused(error: Exception) -> RecipeError:
    return RecipeError(f"train: {in_our_words(str(error), 'train', SFTConfig.__dataclass_fields__)}")
