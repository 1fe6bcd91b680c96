"""β itself: one small object per adapter, shared by all of its layers."""

from __future__ import annotations

import math

import torch

from afa_lora.core.activation import Beta
from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.schedule import Schedule


class AnnealState:
    """The present β of one adapter, its schedule, and where training stands.

    No buffer and no parameter: ``model.to(bfloat16)`` would round it, FSDP2's ``to_empty`` would lose it.

    Args:
        schedule: β(t).
        beta: the value to start from; 1 for a new adapter.
    """

    def __init__(self, schedule: Schedule, beta: float = 1.0) -> None:
        self.schedule = schedule
        self.step: int | None
        self.total_steps: int | None
        self.driven = False  # has anything set β since this adapter was made?
        self.warned = False  # ... and was that complained about?
        self._tensor = torch.zeros((), dtype=torch.float32, device="cpu")
        self.restore(beta)

    @property
    def beta(self) -> float:
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self.restore(value)
        self.driven = True

    def set_step(self, step: int, total_steps: int) -> float:
        """Set β = β(step), # Algorithm 1. ``step`` is the number of finished optimizer steps. Returns β."""
        self.beta = self.schedule.beta(step, total_steps)
        self.step, self.total_steps = step, total_steps
        return self._beta

    @property
    def weight(self) -> Beta:
        """β in the form that the present execution wants: eager code a float, a compiled graph a tensor input."""
        return self._tensor if torch.compiler.is_compiling() else self._beta

    def where(self) -> str:
        """Where training stands, for messages."""
        place = f"β = {self._beta:.4g}"
        if self.step is None or self.total_steps is None:
            return place
        _, end = self.schedule.window(self.total_steps)
        return f"{place} at step {self.step} of {self.total_steps}; it reaches 0 at step {math.ceil(end)}"

    def restore(self, beta: float) -> None:
        """Take over the β of a checkpoint: as setting it, but it does not count as someone driving the annealing.

        Raises:
            InvalidSettingError: outside [0, 1].
        """
        if not isinstance(beta, int | float) or not 0.0 <= beta <= 1.0:
            raise InvalidSettingError(f"beta={beta!r} must be a number in [0, 1].")
        self._beta = float(beta)
        self.step = self.total_steps = None  # not known from β alone
        self.linear = self._beta == 0.0  # a plain bool: torch.compile specialises on it, once
        self._tensor.fill_(self._beta)
