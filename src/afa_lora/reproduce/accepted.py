"""What a study of EAGLE drafts has beside its average: accepted tokens for each set of questions and each shape."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from afa_lora.evaluation.statistics import bootstrap_interval, paired_test
from afa_lora.reproduce.seeds import common_seeds, mean_over_seeds
from afa_lora.reproduce.study import Arm

PROMPTS = "items"  # what an interval is over where there is one seed


def accepted_columns(arm: Arm, baseline: Arm | None) -> dict[str, dict[str, Any]]:
    """For each set and shape the accepted draft tokens a cycle.

    Args:
        arm: with the columns of its finished seeds.
        baseline: what it is compared with, if there is something.

    Returns:
        ``mean``, over a prompt's cycles and then over the prompts and seeds, with its interval; ``pooled``, over all
        cycles alike, and ``pooled_with_bonus``; ``comparison``, the paired test over the prompts, or ``None``.
    """
    scores = list(arm.scores.values())
    columns = {}
    for name in scores[0].columns if scores else ():
        totals = [seed.columns[name] for seed in scores]  # (prompts, 3) each
        accepted, tokens, cycles = np.sum(totals, axis=(0, 1))
        means = [float(_means(seed).mean()) for seed in totals]
        interval = bootstrap_interval(np.mean([_means(seed) for seed in totals], axis=0))
        columns[name] = {
            **mean_over_seeds(means, interval, PROMPTS),
            "per_seed": means,
            "pooled": float(accepted / cycles),
            "pooled_with_bonus": float(tokens / cycles),
            "comparison": _comparison(arm, baseline, name) if baseline is not None else None,
        }
    return columns


def _comparison(arm: Arm, baseline: Arm, column: str) -> dict[str, Any]:
    """The paired test over the prompts, the seeds averaged; not adjusted for the number of columns."""
    seeds = common_seeds(arm.scores, baseline.scores)
    ours, theirs = (
        np.mean([_means(side.scores[seed].columns[column]) for seed in seeds], axis=0) for side in (arm, baseline)
    )
    return {"baseline": baseline.name, **asdict(paired_test([ours], [theirs]))}


def _means(totals: np.ndarray) -> np.ndarray:
    """(prompts,) accepted tokens a cycle."""
    means: np.ndarray = totals[:, 0] / totals[:, 2]
    return means
