"""What a study of GRPO has beside its test: the rewards of the training, and the paper's gaps for each model's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afa_lora.evaluation.statistics import bootstrap_interval, gap_closed
from afa_lora.report.rewards import RewardCurve
from afa_lora.reproduce.runs import VALIDATION
from afa_lora.reproduce.seeds import common_seeds, compared_seeds, mean_over_seeds
from afa_lora.reproduce.study import Arm

FIFTH = 5
STEPS = "steps"  # what an interval is over where there is one seed


def training_rewards(arm: Arm, others: tuple[Arm, Arm] | None) -> dict[str, Any] | None:
    """The mean reward of the sampled completions, in the last fifth of the logged steps and in the first.

    With the same seed every arm samples for the same prompts at the same step, so the gap closed is of pairs of steps.

    Args:
        arm: the arm.
        others: its baseline and full fine-tuning; ``None`` if the arm is one of them, or they are not there.

    Returns:
        ``mean``, its interval and what that is ``over``, ``first_mean``, ``per_seed``, the groups of completions and
        those with equal rewards, and ``gap_closed``; ``None`` if no training is finished.
    """
    fifths = _fifths(arm)
    if not fifths:
        return None
    rewards = [run.training.rewards for run in arm.runs if run.training and run.training.rewards]
    means = [float(last.mean()) for _, last in fifths.values()]
    steps = np.mean(_cut([last for _, last in fifths.values()]), axis=0)
    over_steps = bootstrap_interval(steps) if len(steps) > 1 else None  # of one step it would have no width
    return {
        **mean_over_seeds(means, over_steps, STEPS),
        "per_seed": means,
        "first_mean": float(np.mean([first.mean() for first, _ in fifths.values()])),
        "groups": sum(seed.groups for seed in rewards),
        "groups_with_equal_rewards": sum(seed.equal_groups for seed in rewards),
        "gap_closed": _gap_closed(arm, *others) if others else None,
    }


def mean_reward_curve(name: str, curves: Sequence[RewardCurve]) -> RewardCurve:
    """The mean over seeds at the steps that all of them logged; β is that of the first, being the same for all."""
    rewards = [dict(curve.reward) for curve in curves]
    steps = [step for step, _ in curves[0].reward if all(step in reward for reward in rewards)]
    means = tuple((step, sum(reward[step] for reward in rewards) / len(rewards)) for step in steps)
    return RewardCurve(name, means, beta=curves[0].beta)


def paper_gaps(arm: Arm, baseline: Arm, full: Arm) -> dict[str, float]:
    """The gap closed on the validation rewards that the paper prints, by the size of the model."""
    gaps = {}
    for column, reward in arm.paper.items():
        size, _, part = column.rpartition(" ")
        if part == VALIDATION and column in baseline.paper and column in full.paper:
            gaps[size] = (reward - baseline.paper[column]) / (full.paper[column] - baseline.paper[column])
    return gaps


def _gap_closed(arm: Arm, baseline: Arm, full: Arm) -> dict[str, Any] | None:
    sides = [_fifths(side) for side in (arm, baseline, full)]
    seeds = common_seeds(*sides)
    steps = _cut([side[seed][1] for side in sides for seed in seeds])  # side by side
    if not seeds or len(steps[0]) < 2:
        return None
    afa, lora, all_weights = ([[seed] for seed in steps[i : i + len(seeds)]] for i in range(0, len(steps), len(seeds)))
    return {**asdict(gap_closed(afa, lora, all_weights)), **compared_seeds(arm, seeds)}


def _fifths(arm: Arm) -> Mapping[int | None, tuple[np.ndarray, np.ndarray]]:
    """For each finished seed the mean rewards of the first and of the last fifth of the logged steps, at least one."""
    fifths = {}
    for run in arm.runs:
        if run.training and run.training.rewards and (logged := run.training.rewards.curve.reward):
            values, size = np.array([reward for _, reward in logged]), max(1, len(logged) // FIFTH)
            fifths[run.seed] = values[:size], values[-size:]
    return fifths


def _cut(seeds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All as long as the shortest."""
    shortest = min(map(len, seeds), default=0)
    return [steps[-shortest:] for steps in seeds]
