"""What a trainer has gathered since its last log, carried over a resume, so that the next log is the whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from afa_lora.files import write_atomic


class LoggingState(TrainerCallback):
    """Saves the sums behind the next log with every checkpoint, one file a process, and brings them back.

    transformers starts its mean of the loss anew after a resume, TRL its metrics, and its count of tokens even at 0.

    Args:
        trainer: TRL's, whose sums they are. Put this callback before the one that seals the checkpoint.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.checkpoint: str | None = None
        """The checkpoint that the training goes on from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self._trainer
        sums = {
            "loss": trainer._tr_loss.item(),
            "last_logged": trainer._globalstep_last_logged,
            "tokens": trainer._total_train_tokens,
            "metrics": trainer._metrics["train"],
        }
        checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_atomic(_file(checkpoint, args), json.dumps(sums))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.checkpoint is None or not (file := _file(Path(self.checkpoint), args)).is_file():
            return
        trainer, sums = self._trainer, json.loads(file.read_text(encoding="utf-8"))
        trainer._tr_loss += sums["loss"]
        trainer._globalstep_last_logged = sums["last_logged"]
        trainer._total_train_tokens = sums["tokens"]
        trainer._metrics["train"].update(sums["metrics"])


def _file(checkpoint: Path, args: TrainingArguments) -> Path:
    return checkpoint / f"logging_state_{args.process_index}.json"
