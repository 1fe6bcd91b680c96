"""What is over the seeds of an arm: means, and the seeds that several arms have in common."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from afa_lora.evaluation.statistics import Interval, seed_interval
from afa_lora.reproduce.study import Arm

SEEDS = "seeds"


def mean_over_seeds(per_seed: Sequence[float], otherwise: Interval | None, over: str) -> dict[str, Any]:
    """The mean and Student's interval over the seeds; with one seed another interval, and what that is over."""
    mean, over_seeds = seed_interval(per_seed)
    return {"mean": mean, "interval_95": over_seeds or otherwise, "over": SEEDS if over_seeds else over}


def common_seeds(first: Mapping[int | None, Any], *others: Container[int | None]) -> list[int | None]:
    """The seeds that are finished in all."""
    return [seed for seed in first if all(seed in other for other in others)]


def compared_seeds(arm: Arm, seeds: Iterable[int | None]) -> dict[str, list[int | None]]:
    """The seeds that a comparison is over, and the planned ones that it is not."""
    there = list(seeds)
    return {"seeds": there, "missing_seeds": [run.seed for run in arm.runs if run.seed not in there]}
