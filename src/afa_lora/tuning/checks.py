"""What a training would refuse only after it has started, tried without one. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.optimization import get_scheduler

from afa_lora.settings import RecipeError, in_our_words

OF_WHOLE_MODEL = {"params", "model", "optimizer_dict"}  # optimizers with these take no parameters one by one


def reporting_faults(args: TrainingArguments) -> Iterator[str]:
    """What the integrations in ``train.report_to`` lack."""
    assert isinstance(args.report_to, list)  # `TrainingArguments` has made it one
    for name in args.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ImportError, RuntimeError, ValueError) as error:  # each integration has its own way
            yield f"train.report_to={name!r}: {error}"


def check_optimizer(args: TrainingArguments, model: nn.Module, steps: int) -> None:
    """Make the optimizer and the learning rate's schedule, as the Trainer does, for a parameter that is not there.

    Args:
        args: the trainer's.
        model: some optimizers look for layers in it.
        steps: optimizer steps in all.

    Raises:
        RecipeError: one of them is refused, or needs a package that is missing.
    """
    parameter, settings = nn.Parameter(torch.zeros(1)), args.lr_scheduler_kwargs
    assert not isinstance(settings, str)  # `TrainingArguments` has parsed it
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
        if OF_WHOLE_MODEL & options.keys():
            kind, options = torch.optim.SGD, {"lr": args.learning_rate}
        get_scheduler(
            args.lr_scheduler_type,
            kind([parameter], **options),
            args.get_warmup_steps(steps),
            steps,
            settings,
        )
    except (ImportError, RuntimeError, TypeError, ValueError) as error:  # each library has its own way
        raise RecipeError(f"train: {in_our_words(str(error), 'train', vars(args))}") from error
