"""β(t), Eq. 5: from 1 to exactly 0, a pure function of the optimizer step. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from afa_lora.core.errors import InvalidSettingError, unknown_name

EXPONENTIAL_RATE = 5.0  # ours: β has fallen to 0.08 half-way through the window
STAIRS = 5  # ours: one stair for each of the five decay epochs of the paper's Table 3


def _exponential(progress: float) -> float:
    floor = math.exp(-EXPONENTIAL_RATE)
    return (math.exp(-EXPONENTIAL_RATE * progress) - floor) / (1.0 - floor)


# How β falls inside the window, as a function of the window's elapsed share in (0, 1).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,  # Eq. 5
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "exponential": _exponential,
    "step": lambda progress: 1.0 - math.floor(progress * STAIRS) / STAIRS,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """β(t) for t counted in optimizer steps (Eq. 5).

    Args:
        kind: one of ``linear`` (the paper's), ``cosine``, ``exponential``, ``step`` (five equal stairs), ``constant``
            (1 until the end of the window).
        start: t_start, the last step at which β is still 1. A float in [0, 1] is a fraction of training, an int is a
            number of optimizer steps.
        end: t_end, the first step at which β is exactly 0. Same units as ``start``, each on its own.

    Raises:
        InvalidSettingError: unknown kind, a bound out of range, or ``end <= start``.
    """

    kind: str = "linear"
    start: float | int = 0.0
    end: float | int = 0.3

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise unknown_name("schedule", self.kind, SCHEDULES)
        for key, value in (("anneal_start", self.start), ("anneal_end", self.end)):
            _check_bound(key, value)
        if isinstance(self.start, int) == isinstance(self.end, int):
            self._check_order(self.start, self.end)

    def window(self, total_steps: int) -> tuple[float, float]:
        """Return (t_start, t_end) in optimizer steps for a training of ``total_steps``.

        Raises:
            InvalidSettingError: the window is empty at this length of training.
        """
        start, end = (v if isinstance(v, int) else v * total_steps for v in (self.start, self.end))
        self._check_order(start, end)
        return start, end

    def beta(self, step: int, total_steps: int) -> float:
        """β(t), # Eq. 5. ``step`` counts finished optimizer steps: 0 before the first one."""
        start, end = self.window(total_steps)
        if step <= start:
            return 1.0
        if step >= end:
            return 0.0
        return SCHEDULES[self.kind]((step - start) / (end - start))

    def _check_order(self, start: float, end: float) -> None:
        if end <= start:
            raise InvalidSettingError(
                f"anneal_end={self.end!r} must come after anneal_start={self.start!r} "
                f"(t_start={start:g}, t_end={end:g}, steps or share of training); raise the one or lower the other."
            )


def _check_bound(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSettingError(f"{key}={value!r} must be a float (share of training) or an int (optimizer steps).")
    if value < 0 or (isinstance(value, float) and value > 1.0):
        raise InvalidSettingError(
            f"{key}={value!r} is out of range: a float is a share of training in [0, 1], "
            f"an int counts optimizer steps from 0. For {value:g} steps write the int {int(abs(value))}."
        )
