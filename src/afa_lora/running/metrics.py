"""What a training logs, as JSON lines and as TensorBoard events; a resumed training goes on in the same files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from afa_lora.files import write_atomic

TEST = "test"  # prefix of the metrics on the test items, taken once after the training


class MetricsLog(TrainerCallback):
    """Appends one JSON object a log entry: ``step``, ``seconds`` of training so far, and all that the Trainer logs.

    When a training goes on from a checkpoint, the entries after it are removed first, so the file ends up with the
    entries of an uninterrupted training.

    Attributes:
        seconds: duration of the training, those parts of earlier starts that count included.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._earlier = 0.0  # seconds
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept = [entry for entry in read_metrics(self._path) if _counts(entry, state.global_step)]
        self._earlier = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()
        if state.is_world_process_zero:
            write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "train_runtime" in logs or not state.is_world_process_zero:
            return  # the Trainer's summary at the end counts the present start alone
        entry = {"step": state.global_step, "seconds": round(self.seconds, 3), **logs}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics file; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a whole line ends in a line break
    return [json.loads(line) for line in lines]


def tensorboard(folder: Path, first_step: int) -> TensorBoardCallback:
    """A callback that writes events below ``folder``; events of ``first_step`` and later are replaced."""
    callback = TensorBoardCallback(SummaryWriter(str(folder), purge_step=first_step))
    callback.logging_dir = str(folder)
    return callback


def _counts(entry: dict[str, Any], step: int) -> bool:
    return entry["step"] <= step and f"{TEST}_loss" not in entry
