"""Ctrl-C and SIGTERM during a training: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM do inside the block what Ctrl-C does."""
    if not _may_handle_signals():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _may_handle_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


class GracefulStop(TrainerCallback):
    """While its ``with`` block runs, the first signal ends the training after the present step, with a checkpoint.

    A second one acts at once, as without this class. Several processes agree on the step: the wish of one is the
    wish of all.

    Args:
        report: receives a line of text when the signal arrives.

    Attributes:
        requested: whether a signal has arrived, here or in another process.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.requested = False
        self._report = report
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulStop:
        if _may_handle_signals():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if PartialState().num_processes > 1:
            wishes = reduce(torch.tensor(float(self.requested), device=args.device))
            self.requested = bool(wishes > 0)
        if self.requested:
            control.should_save = True
            control.should_training_stop = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        self._report("Stopping after this step; press Ctrl-C again to stop at once without saving.")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
