"""Progress in the terminal: one bar for a training, one for an evaluation."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from afa_lora.report.curves import BETA


def progress_bar(console: Console) -> Progress:
    """A bar with count, elapsed and remaining time, and a ``note`` field for the present numbers."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class TrainingProgress(TrainerCallback):
    """Shows step, loss (or reward) and β of a Trainer; use it as a context manager around ``trainer.train()``."""

    def __init__(self, console: Console, description: str) -> None:
        self._progress = progress_bar(console)
        self._task = self._progress.add_task(description, total=None, note="", visible=False)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress.update(
            self._task, total=state.max_steps, completed=state.global_step, visible=state.is_world_process_zero
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            beta = f"  β {logs[BETA]:.2f}" if BETA in logs else ""
            shown = "reward" if logs.get("reward") is not None else "loss"  # GRPO's loss says nothing
            self._progress.update(self._task, note=f"{shown} {float(logs[shown]):.3f}{beta}")
