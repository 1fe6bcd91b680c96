"""What right answers, or other counts, say about a model, and about the difference between two of them.

Every interval is a 95 % one. Bootstraps are percentile bootstraps over test items (Efron and Tibshirani, An
Introduction to the Bootstrap, chapter 13), resampled within each task; an average is the mean over tasks, each with the
same weight. At 0 % and at 100 % there is nothing to resample: such an interval has no width, and tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
SIGNIFICANCE = 0.05
TAILS = (0.025, 0.975)
TINY = 1e-9  # far above the rounding of an average, far below the change that one item makes

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same items.

    Attributes:
        difference: of the average accuracies, the first less the second.
        interval_95: of the difference; paired bootstrap over items.
        p_value: two-sided, of the sign-flip permutation test that neither model is better.
        wins: items that the first model answers better.
        losses: items that the second one answers better.
        ties: the others.
    """

    difference: float
    interval_95: Interval
    p_value: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class GapClosed:
    """Which share of the way from LoRA to full fine-tuning another method goes; 1 is all of it.

    Attributes:
        value: ``None`` where full fine-tuning is not clearly better than LoRA.
        interval_95: ``None`` where ``value`` is.
        reason: why there is no value; ``None`` where there is one.
    """

    value: float | None
    interval_95: Interval | None
    reason: str | None


def bootstrap_interval(correct: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The interval of an accuracy.

    Args:
        correct: (items,) right or wrong, or in [0, 1] the share of several models that are right.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: there are no items.
    """
    return bootstrap_average_interval([correct], seed, resamples)


def bootstrap_average_interval(
    correct_by_task: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The interval of the mean over tasks; the arguments are those of `bootstrap_interval`, one array a task."""
    columns = [np.asarray(correct, dtype=float)[:, None] for correct in correct_by_task]
    return _interval(_resampled_average(columns, np.random.default_rng(seed), resamples)[:, 0])


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """The exact two-sided p-value that two models are right equally often on one task.

    Args:
        a: (items,) whether the first model is right.
        b: (items,) whether the second one is, on the same items.

    Raises:
        ValueError: other numbers of items.
    """
    wins, losses, _ = _counts(_differences([a], [b])[0])
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_test(
    a_by_task: Sequence[np.ndarray], b_by_task: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """Compare two models on the same items.

    Where values are shares of several seeds, the test is about these very models: it does not say what another seed
    would give (`seed_interval` of the differences does).

    Args:
        a_by_task: (items,) for each task: whether the first model is right, or the share of its seeds that are.
        b_by_task: the same of the second one, the same items in the same order.
        seed: of the resampling.
        resamples: how many, of the bootstrap and of the test.

    Raises:
        ValueError: other numbers of tasks or items, or none.
    """
    by_task = _differences(a_by_task, b_by_task)
    rng = np.random.default_rng(seed)
    difference = float(np.mean([values.mean() for values in by_task]))
    flipped = np.mean([_flipped_mean(values, rng, resamples) for values in by_task], axis=0)  # (resamples,)
    interval = _interval(_resampled_average([values[:, None] for values in by_task], rng, resamples)[:, 0])
    as_large = int(np.sum(np.abs(flipped) >= abs(difference) - TINY))
    p_value = (as_large + 1) / (resamples + 1)  # the data are one of the permutations
    return PairedTest(difference, interval, p_value, *_counts(np.concatenate(by_task)))


def bootstrap_ratio_interval(
    totals_by_task: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The interval of a ratio of sums over items, such as tokens over cycles; the mean over tasks of it.

    Args:
        totals_by_task: (items, 2) for each task: what an item adds to the numerator, and to the denominator (above 0).
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: there are no items, or one adds nothing to the denominator.
    """
    columns = [_totals(totals) for totals in totals_by_task]
    return _interval(_resampled_ratio(columns, np.random.default_rng(seed), resamples)[:, 0])


def paired_ratio_test(
    a_by_task: Sequence[np.ndarray], b_by_task: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> PairedTest:
    """Compare two models by a ratio of sums over the same items.

    The test swaps the two models' totals of an item, where `paired_test` flips the sign of its difference. Wins and
    losses compare the ratios of single items.

    Args:
        a_by_task: the first model's totals, as for `bootstrap_ratio_interval`.
        b_by_task: the same of the second one, the same items in the same order.
        seed: of the resampling.
        resamples: how many, of the bootstrap and of the test.

    Raises:
        ValueError: other numbers of tasks or items, or none; an item adds nothing to a denominator.
    """
    pairs = [(_totals(a), _totals(b)) for a, b in zip(a_by_task, b_by_task, strict=True)]
    if not pairs or any(len(a) != len(b) for a, b in pairs):
        raise ValueError("The two must have the same items, at least one of each task.")
    rng = np.random.default_rng(seed)
    ratios = _resampled_ratio([np.concatenate(pair, axis=1) for pair in pairs], rng, resamples)  # (resamples, 2)
    swapped = np.mean([_swapped_difference(a, b, rng, resamples) for a, b in pairs], axis=0)  # (resamples,)
    difference = float(np.mean([_ratio(a.sum(0)) - _ratio(b.sum(0)) for a, b in pairs]))
    as_large = int(np.sum(np.abs(swapped) >= abs(difference) - TINY))
    p_value = (as_large + 1) / (resamples + 1)
    by_item = np.concatenate([_ratio(a) - _ratio(b) for a, b in pairs])
    return PairedTest(difference, _interval(ratios[:, 0] - ratios[:, 1]), p_value, *_counts(by_item))


def seed_interval(values: Sequence[float]) -> tuple[float, Interval | None]:
    """The mean over seeds and its Student-t interval; ``None`` for fewer than two seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf(TAILS[1], len(values) - 1) * stats.sem(values))
    return mean, (mean - half, mean + half)


def gap_closed(
    afa: Sequence[Sequence[np.ndarray]],
    lora: Sequence[Sequence[np.ndarray]],
    full: Sequence[Sequence[np.ndarray]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> GapClosed:
    """(AFA - LoRA) / (full - LoRA) of the average accuracies, bootstrapped over seeds and, within them, over items.

    A bootstrap over few seeds is too narrow (over two by a factor of up to √2), and with one seed it says nothing about
    others.

    Args:
        afa: for each seed and each task (items,), whether the model is right.
        lora: the same of LoRA (or DoRA), the same seeds, the same items in the same order.
        full: the same of full fine-tuning.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: other numbers of seeds, tasks or items, or none.
    """
    arms = (afa, lora, full)
    if not lora or len({len(arm) for arm in arms}) > 1 or len({len(tasks) for arm in arms for tasks in arm}) > 1:
        raise ValueError("The three must have the same seeds and tasks, at least one of each.")
    # (seeds, items, 3) for each task
    by_task = [
        np.array([[tasks[task] for tasks in arm] for arm in arms], dtype=float).transpose(1, 2, 0)
        for task in range(len(lora[0]))
    ]
    rng = np.random.default_rng(seed)
    shares = rng.multinomial(len(lora), [1 / len(lora)] * len(lora), resamples) / len(lora)  # (resamples, seeds)
    averages = np.concatenate(  # (resamples, 3)
        [
            _resampled_average([np.tensordot(share, values, 1) for values in by_task], rng, int(times))
            for share, times in zip(*np.unique(shares, axis=0, return_counts=True), strict=True)
        ]
    )
    gain, gap = averages[:, 0] - averages[:, 1], averages[:, 2] - averages[:, 1]
    low, high = _interval(gap)
    if low <= TINY:
        there = f"the 95 % interval of its lead is {100 * low:+.2f} to {100 * high:+.2f} points".replace("-", "−")
        return GapClosed(None, None, f"full fine-tuning is not clearly better than the baseline: {there}")
    beyond = np.where(gain > 0, np.inf, -np.inf)  # less than a tail, so no bound of the interval
    ratios = np.divide(gain, gap, out=beyond, where=gap > TINY)
    estimate = np.mean([values.mean(axis=(0, 1)) for values in by_task], axis=0)  # (3,)
    value = float((estimate[0] - estimate[1]) / (estimate[2] - estimate[1]))
    return GapClosed(value, _interval(ratios), None)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for there being several of them (Holm, 1979), in the same order."""
    order = np.argsort(p_values)
    steps = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def _differences(a_by_task: Sequence[np.ndarray], b_by_task: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(items,) for each task, in [-1, 1]."""
    pairs = [
        (np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in zip(a_by_task, b_by_task, strict=True)
    ]
    if not pairs or any(a.shape != b.shape or not a.size for a, b in pairs):
        raise ValueError("The two must have the same items, at least one of each task.")
    return [a - b for a, b in pairs]


def _counts(differences: np.ndarray) -> tuple[int, int, int]:
    wins, losses = int(np.sum(differences > TINY)), int(np.sum(differences < -TINY))
    return wins, losses, len(differences) - wins - losses


def _resampled_average(by_task: Sequence[np.ndarray], rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Draw the items of each task anew and average: (items, columns) for each task to (resamples, columns).

    Items with equal values are drawn together, as a multinomial count: for right and wrong, that is a binomial draw.
    """
    if not by_task or any(not len(values) for values in by_task):
        raise ValueError("There are no items.")
    averages = []
    for values in by_task:
        distinct, times = np.unique(values, axis=0, return_counts=True)
        drawn = rng.multinomial(len(values), times / len(values), resamples)  # (resamples, distinct)
        averages.append(drawn @ distinct / len(values))
    return np.mean(averages, axis=0)


def _flipped_mean(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """The mean with random signs, (resamples,): how often each absolute value is positive is a binomial draw."""
    sizes, times = np.unique(np.abs(differences), return_counts=True)
    positive = rng.binomial(times, 0.5, (resamples, len(sizes)))
    return (2 * positive - times) @ sizes / len(differences)


def _totals(totals: np.ndarray) -> np.ndarray:
    """(items, 2), checked."""
    checked = np.asarray(totals, dtype=float).reshape(-1, 2)
    if not len(checked) or not np.all(checked[:, 1] > 0):
        raise ValueError("There must be items, and each must add to the denominator.")
    return checked


def _ratio(totals: np.ndarray) -> np.ndarray:
    """(…, 2 · models) to (…, models)."""
    return totals[..., 0::2] / totals[..., 1::2]


def _resampled_ratio(by_task: Sequence[np.ndarray], rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Draw the items of each task anew: (items, 2 · models) for each task to (resamples, models)."""
    if not by_task:
        raise ValueError("There are no items.")
    return np.mean([_ratio(_resampled_average([totals], rng, resamples)) for totals in by_task], axis=0)


def _swapped_difference(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """The difference of the ratios with each item's totals swapped or not, (resamples,)."""
    moved = rng.integers(0, 2, (resamples, len(a))) @ (b - a)  # (resamples, 2)
    return (_ratio(a.sum(0) + moved) - _ratio(b.sum(0) - moved))[:, 0]


def _interval(draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, TAILS, method="inverted_cdf")
    return float(low), float(high)
