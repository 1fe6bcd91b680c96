"""The largest amount of memory that a piece of work held."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

SAMPLING_INTERVAL = 0.02  # seconds


class PeakMemory:
    """Measures its ``with`` block: on CUDA the allocator's peak, elsewhere the resident memory of this process.

    Attributes:
        bytes: the peak; complete when the block has ended. Resident memory is sampled every 20 ms and includes what
            the process held before.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
        else:
            self._stop.set()
            self._sampler.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._stop.wait(SAMPLING_INTERVAL):
                return
