"""How a generation went: what was accepted, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

Part = Literal["target", "draft"]


@dataclass
class DecodingStats:
    """One generation.

    Attributes:
        accepted: for each cycle, how many draft tokens were accepted and kept; the target's own token is not counted.
        prefill_seconds: until the first token is there and the draft has read the prompt.
        target_seconds: in the target's forwards after that, its output layer included.
        draft_seconds: in the draft's forwards after that, the output layer included.
        other_seconds: of all the rest after that.
    """

    accepted: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    target_seconds: float = 0.0
    draft_seconds: float = 0.0
    other_seconds: float = 0.0

    @property
    def mean_accepted(self) -> float:
        """Accepted draft tokens in a cycle; nan without a cycle."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else float("nan")

    @property
    def overhead(self) -> float:
        """The share of the time of the cycles outside the two models' forwards; nan without a cycle."""
        whole = self.target_seconds + self.draft_seconds + self.other_seconds
        return self.other_seconds / whole if self.accepted else float("nan")


class Stopwatch:
    """Adds up the time of the two models' forwards without waiting for the device: by events on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin anew, once the device has finished what it was given."""
        self._wait()
        self.begun = time.perf_counter()
        self.spans: dict[str, float] = {"target": 0.0, "draft": 0.0}
        self.events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def time(self, part: Part) -> Iterator[None]:
        """Count what runs inside as this part's."""
        if self.device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            stream = torch.cuda.current_stream(self.device)
            first.record(stream)
            yield
            last.record(stream)
            self.events.append((part, first, last))
        else:
            begun = time.perf_counter()
            yield
            self.spans[part] += time.perf_counter() - begun

    def elapsed(self) -> tuple[float, float, float]:
        """Seconds since the start, once the device has finished: all, the target's, the draft's."""
        self._wait()
        whole = time.perf_counter() - self.begun
        for part, first, last in self.events:
            self.spans[part] += first.elapsed_time(last) / 1000
        self.events = []
        return whole, self.spans["target"], self.spans["draft"]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
