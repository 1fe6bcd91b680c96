"""Reward and β over a GRPO training, as one figure and as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from afa_lora.report.curves import BETA, Annealed, figure_over_beta, save_figure, smoothed

Points = tuple[tuple[int, float], ...]
FIFTH = 5
SMOOTHED = 20  # bends of the thick line


@dataclass(frozen=True)
class RewardCurve(Annealed):
    """What one GRPO training logged.

    Attributes:
        name: for the legend.
        reward: (optimizer step, mean reward of the sampled completions) pairs, one for each step that sampled some.
        validation: (optimizer step, mean reward of greedy answers to the test items) pairs.
        linear: the same of the policy with β = 0, where that is another one.
        beta: (optimizer step, β) pairs; empty if nothing was annealed.
    """

    name: str
    reward: Points
    validation: Points = ()
    linear: Points = ()
    beta: Points = ()


@dataclass(frozen=True)
class Rise:
    """How the mean reward of the last fifth of a training differs from that of the first.

    Attributes:
        first: mean reward of the first fifth of the steps that sampled.
        last: mean reward of the last fifth.
        interval: Welch's 95 % interval of the difference, over the steps' mean rewards; ``None`` for fewer than two
            steps in a fifth.
    """

    first: float
    last: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        text = f"{self.first:.3f} → {self.last:.3f} ({self.last - self.first:+.3f}"
        return text + (f"; 95 %: {self.interval[0]:+.3f} to {self.interval[1]:+.3f})" if self.interval else ")")


def read_reward_curve(name: str, log_history: Iterable[Mapping[str, float]]) -> RewardCurve:
    """Read a curve out of ``trainer.state.log_history``."""
    logs = list(log_history)

    def points(key: str, beside: str | None = None) -> Points:
        return tuple(
            (int(entry["step"]), float(entry[key]))
            for entry in logs
            if entry.get(key) is not None and (beside is None or beside in entry)
        )

    return RewardCurve(
        name,
        points("reward"),
        points("eval_reward"),
        points("eval_linear_reward"),
        points(BETA, beside="loss"),
    )


def rise(curve: RewardCurve) -> Rise | None:
    """Compare the last fifth of the steps that sampled with the first; ``None`` if nothing was logged."""
    values = [value for _, value in curve.reward]
    if not values:
        return None
    size = max(1, len(values) // FIFTH)
    first, last = np.array(values[:size]), np.array(values[-size:])
    interval = None
    if size > 1:
        variances = first.var(ddof=1) / size, last.var(ddof=1) / size
        spread = math.sqrt(sum(variances))
        difference = float(last.mean() - first.mean())
        freedom = sum(variances) ** 2 / sum(v**2 / (size - 1) for v in variances) if spread else math.inf
        half = float(stats.t.ppf(0.975, freedom)) * spread
        interval = difference - half, difference + half
    return Rise(float(first.mean()), float(last.mean()), interval)


def plot_rewards(curves: Sequence[RewardCurve], path: Path) -> None:
    """Write a PNG with the rewards above and, if anything was annealed, β below; annealing windows are shaded.

    A thin line is the mean reward of a step, a thick one its mean over several steps; dots are the test items', hollow
    ones those of the linear policy.
    """
    figure, panel = figure_over_beta(curves, "mean reward")
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        if curve.reward:
            panel.plot(*zip(*curve.reward, strict=True), color=colour, linewidth=0.7, alpha=0.4)
            thick = smoothed(curve.reward, SMOOTHED)
            panel.plot(*zip(*thick, strict=True), color=colour, linewidth=2, label=curve.name)
        for points, face, label in ((curve.validation, colour, "test"), (curve.linear, "white", "test, β = 0")):
            if points:
                panel.plot(
                    *zip(*points, strict=True), "o", color=colour, markerfacecolor=face, label=f"{curve.name}, {label}"
                )
    save_figure(figure, path)
