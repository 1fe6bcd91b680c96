"""Time, memory and provenance of a training step."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


class Elapsed(NamedTuple):
    """Seconds of one step: on the wall, and of this process's CPU time, all threads together."""

    wall: float
    cpu: float


def timed(step: Callable[[], None], device: torch.device) -> Elapsed:
    """Run ``step`` once and return how long it took, until the device has finished it."""
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _synchronize(device)
    return Elapsed(time.perf_counter() - wall, time.process_time() - cpu)


class _Saved:
    """What a node of the graph holds in place of a tensor: alive for as long as that node is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output of the node itself would otherwise hold the node


def saved_bytes(forward: Callable[[], Tensor], resident: Iterable[Tensor]) -> int:
    """Return the bytes that a forward has saved for its backward by the time that it returns.

    Each storage counts once, however many views of it are saved. Storages that are there anyway (``resident``: the
    model's parameters and buffers, the batch) do not count.
    """
    held: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = forward()
    sizes = {s.data_ptr(): s.nbytes() for s in (saved.tensor.untyped_storage() for saved in held)}
    del loss  # the graph, and with it what `held` sees, lived until here
    known = {t.untyped_storage().data_ptr() for t in resident}
    return sum(size for address, size in sizes.items() if address not in known)


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Return the largest number of bytes that a step holds at once beyond what was allocated before it.

    On CUDA the caching allocator counts them. On a CPU the profiler reports each allocation and each release of
    PyTorch's allocator in order, and the peak of their running sum is the same from run to run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() == "[memory]"]
    present = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    return peak


def spread(values: list[float]) -> float:
    """Return half the distance between the quartiles, relative to the median."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / statistics.median(values)


def provenance(device: torch.device) -> dict[str, object]:
    """Return what is needed to judge or repeat the numbers: versions, hardware, threads, commit, date."""
    packages = ("torch", "transformers", "peft")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _commit() -> str:
    """Return the commit of this checkout, marked where the sources differ from it; 'unknown' outside of a checkout."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
