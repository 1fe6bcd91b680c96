"""How long a step takes here: its own operations, timed for about a second on the device that will train."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from afa_lora.sft.planning.estimate import Product, Work

BUDGET = 1.0  # seconds for all measurements together
LARGEST_SIDE = {"cpu": 1024}  # a matrix product is no faster per operation beyond
LARGEST_SIDE_ELSEWHERE = 4096
READS_AND_WRITES = 3  # of the timed element-wise operation


@dataclass(frozen=True)
class Speed:
    """What a device was measured to do.

    Attributes:
        device: the type of device.
        flops: additions and multiplications a second, over the step's products.
        bandwidth: bytes a second that element-wise operations of the step's mean size read and write.
        seconds: what one step takes by these.
    """

    device: str
    flops: float
    bandwidth: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"timed on this machine's {self.device}: {self.flops / 1e9:,.0f} GFLOP/s in the model's own matrix "
            f"products, {self.bandwidth / 1e9:,.1f} GB/s in the other operations"
        )


def measure_speed(work: Work, device: str) -> Speed:
    """Time the step's matrix products, large ones cut to a size that is as fast, and an element-wise operation.

    seconds = Σ over products (operations / measured rate) + attention at their mean rate + bytes / bandwidth.
    """
    cut = _cut(work.products, LARGEST_SIDE.get(device, LARGEST_SIDE_ELSEWHERE))
    share = BUDGET / (len(cut) + 1)
    seconds = sum(flops / product_rate(product, device, share) for product, flops in cut.items())
    rate = sum(cut.values()) / seconds
    bandwidth = _bandwidth(work.moved // max(work.others, 1), device, share)
    return Speed(device, rate, bandwidth, work.flops / rate + work.moved / bandwidth)


def _cut(products: Mapping[Product, int], largest: int) -> Counter[Product]:
    """The operations in products of each size, every side at most ``largest``."""
    flops: Counter[Product] = Counter()
    for product, count in products.items():
        rows, inner, columns = (min(side, largest) for side in (product.rows, product.inner, product.columns))
        flops[Product(min(product.copies, 8), rows, inner, columns, product.dtype)] += count * product.flops
    return flops


def product_rate(product: Product, device: str, seconds: float) -> float:
    """Additions and multiplications a second of one matrix product, timed for so many seconds."""
    copies, rows, inner, columns, dtype = product
    left = torch.randn(copies, rows, inner, device=device).to(dtype)
    right = torch.randn(copies, inner, columns, device=device).to(dtype)
    if copies == 1:
        left, right = left[0], right[0]
    return product.flops / _time(lambda: left @ right, device, seconds)


def _bandwidth(size: int, device: str, seconds: float) -> float:
    """Bytes a second of one operation that reads and writes ``size`` bytes, as most of a step's do."""
    left = torch.randn(max(size // READS_AND_WRITES // 4, 1), device=device)
    right = left.clone()
    return READS_AND_WRITES * left.nbytes / _time(lambda: left * right, device, seconds)


def _time(operation: Callable[[], object], device: str, budget: float) -> float:
    """The median duration of ``operation`` within a budget, in seconds; at least one run after one to warm up."""
    operation()
    found: list[float] = []
    end = time.perf_counter() + budget
    while not found or time.perf_counter() < end:
        _wait(device)
        started = time.perf_counter()
        operation()
        _wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
