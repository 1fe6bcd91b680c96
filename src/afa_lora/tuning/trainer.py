"""What our trainers add to TRL's: an exact resume, a stop at NaN, the arguments that fit the machine, our callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy, TrainOutput
from transformers.utils import is_torch_cuda_available, strtobool

from afa_lora import AnnealingCallback
from afa_lora.running.checkpoints import CheckpointSealer, NonFiniteError
from afa_lora.running.logging_state import LoggingState
from afa_lora.settings import RecipeError, in_our_words
from afa_lora.tuning.loading import precision_flags, training_device
from afa_lora.tuning.recipe import TuningRecipe

APPLIED_BEFORE = {"model_init_kwargs", "chat_template_path"}  # by the time that TRL gets model and tokenizer

A = TypeVar("A", bound=TrainingArguments)


class ExactTraining(Trainer):
    """To be mixed into a trainer: it resumes exactly, and raises instead of training on after a loss of NaN or
    infinity."""

    def train(self, resume_from_checkpoint: str | None = None) -> TrainOutput:  # type: ignore[override]
        """Train, from a checkpoint if one is given, with the logs of an uninterrupted training."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "checkpoint"):  # a state of ours
                callback.checkpoint = resume_from_checkpoint
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # it was done at the start
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


def training_arguments(kind: type[A], recipe: TuningRecipe, settings: Mapping[str, Any]) -> A:
    """The recipe's ``train`` section as the trainer's configuration, with defaults that fit this machine.

    Args:
        kind: the configuration's class.
        recipe: its ``train`` section stands above all defaults.
        settings: the workflow's own defaults.

    Raises:
        RecipeError: the configuration refuses a value.
    """
    if recipe.train.get("save_only_model"):
        raise RecipeError("train.save_only_model=true: a run could not be resumed from such checkpoints. Leave it out.")
    given: dict[str, Any] = {
        "output_dir": str(recipe.output / "checkpoints"),
        "disable_tqdm": True,
        "dataloader_pin_memory": is_torch_cuda_available(),
        "logging_nan_inf_filter": False,  # a NaN stops the training
        "use_cpu": training_device(recipe) == "cpu",  # unless this is said, several processes would not see each other
        "ddp_find_unused_parameters": False,
        "hub_model_id": recipe.output.name if recipe.train.get("push_to_hub") else None,  # else "checkpoints"
        **precision_flags(recipe),
        **settings,
        **{key: value for key, value in recipe.train.items() if key not in APPLIED_BEFORE},
    }
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise refused(error, kind) from error


def is_sharded(args: TrainingArguments) -> bool:
    """Whether the Trainer will share the model's weights out among the processes (FSDP)."""
    return bool(args.fsdp) or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")) == 1


def annealing(recipe: TuningRecipe, *, keeps_generations: bool = False) -> list[TrainerCallback]:
    """The callback that sets β, if the method has one."""
    return [AnnealingCallback(keeps_generations=keeps_generations)] if recipe.anneals else []


class EpochEnd(TrainerCallback):
    """Has an epoch's test and log done with its last step, before a checkpoint of that step is written.

    The Trainer does them after that, so a training that goes on from such a checkpoint would leave them out.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = state.epoch or 0.0
        if epoch.is_integer() or state.global_step >= state.max_steps:
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH and epoch >= args.eval_delay

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_evaluate = False


def set_callbacks(trainer: Trainer, limit: int | None, *states: TrainerCallback) -> None:
    """Put our callbacks in the place of the Trainer's.

    Args:
        trainer: made with `annealing`'s and without ``save_total_limit``.
        limit: the recipe's ``save_total_limit``.
        states: callbacks that save something of the workflow's own with every checkpoint; those with a ``checkpoint``
            are told which one the training goes on from.
    """
    for callback in (PrinterCallback, ProgressCallback, TensorBoardCallback):  # ours stand in for them
        trainer.remove_callback(callback)
    # in this order: what is sealed is whole
    for own in (EpochEnd(), LoggingState(trainer), *states, CheckpointSealer(limit)):
        trainer.add_callback(own)
    # before W&B and its like, so that they see β among the logs
    trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, AnnealingCallback))


def refused(error: Exception, kind: type[TrainingArguments]) -> RecipeError:
    """What a trainer or its configuration refuses, in the recipe's words."""
    return RecipeError(f"train: {in_our_words(str(error), 'train', kind.__dataclass_fields__)}")
