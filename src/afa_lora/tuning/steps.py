"""How many optimizer steps a training takes, as `transformers.Trainer` counts them."""

from __future__ import annotations

import math

from accelerate import PartialState
from transformers import TrainingArguments


def steps_in_epoch(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps of one pass over the rows, at least one; the processes are those that run now."""
    together = args.per_device_train_batch_size * PartialState().num_processes
    batches = rows // together if args.dataloader_drop_last else -(-rows // together)
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def count_steps(args: TrainingArguments, rows: int) -> int:
    """Optimizer steps in all."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_in_epoch(args, rows))
