"""The statistics agree with scipy's own, and with what must hold for any data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from afa_lora.evaluation.statistics import (
    bootstrap_average_interval,
    bootstrap_interval,
    gap_closed,
    holm,
    mcnemar,
    paired_test,
    seed_interval,
)

RESAMPLES = 10_000


def random_answers(seed: int, *shares: float, items: int = 120) -> list[np.ndarray]:
    """One task for each share of right answers; the number of items differs between the tasks."""
    rng = np.random.default_rng(seed)
    return [rng.random(items + 10 * i) < share for i, share in enumerate(shares)]


def quantile_tolerance(deviation: float) -> float:
    """Five standard errors of the difference of two estimates of a normal's 97.5 % quantile, by RESAMPLES draws each.

    The variance of a quantile's estimate is q (1 - q) / (n f²) with the density f there.
    """
    density = stats.norm.pdf(stats.norm.ppf(0.975)) / deviation
    return 5 * math.sqrt(2 * 0.975 * 0.025 / RESAMPLES) / density


def deviation_of_mean(by_task: list[np.ndarray]) -> float:
    """The standard deviation of a macro average under resampling."""
    return math.sqrt(sum(float(values.var()) / len(values) for values in by_task)) / len(by_task)


def macro(*by_task: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean([values.mean(axis=axis) for values in by_task], axis=0)


tasks = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**32 - 1)), min_size=1, max_size=4)


def answers(drawn: list[tuple[int, int]], shift: int = 0) -> list[np.ndarray]:
    return [np.random.default_rng(seed + shift).random(items) < 0.6 for items, seed in drawn]


@pytest.mark.parametrize("share", [0.04, 0.5, 0.93])
def test_the_interval_is_scipys_percentile_bootstrap(share: float) -> None:
    (correct,) = random_answers(1, share)
    theirs = stats.bootstrap((correct,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=2)
    tolerance = quantile_tolerance(deviation_of_mean([correct])) + 1 / len(correct)  # the mean moves in such steps
    assert bootstrap_interval(correct) == pytest.approx(tuple(theirs.confidence_interval), abs=tolerance)


def test_the_interval_of_an_average_is_scipys_percentile_bootstrap() -> None:
    by_task = random_answers(3, 0.3, 0.55, 0.8)
    theirs = stats.bootstrap(by_task, macro, n_resamples=RESAMPLES, method="percentile", rng=4, batch=1000)
    tolerance = quantile_tolerance(deviation_of_mean(by_task))
    assert bootstrap_average_interval(by_task) == pytest.approx(tuple(theirs.confidence_interval), abs=tolerance)


def test_the_interval_of_a_difference_is_scipys_paired_percentile_bootstrap() -> None:
    a, b = random_answers(5, 0.5, 0.6), random_answers(6, 0.4, 0.6)
    differences = [x.astype(float) - y for x, y in zip(a, b, strict=True)]
    theirs = stats.bootstrap(differences, macro, n_resamples=RESAMPLES, method="percentile", rng=7, batch=1000)
    tolerance = quantile_tolerance(deviation_of_mean(differences))
    assert paired_test(a, b).interval_95 == pytest.approx(tuple(theirs.confidence_interval), abs=tolerance)


@pytest.mark.parametrize("share", [0.45, 0.55, 0.68])
def test_the_p_value_is_scipys_sign_flip_permutation_test(share: float) -> None:
    a, b = random_answers(8, share, share), random_answers(9, 0.4, 0.5)
    whole = np.concatenate([(x.astype(float) - y) / len(x) for x, y in zip(a, b, strict=True)])
    theirs = stats.permutation_test(
        (whole,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=10, batch=1000
    ).pvalue
    ours = paired_test(a, b).p_value
    assert 0.0 < ours < 1.0
    assert ours == pytest.approx(theirs, abs=5 * math.sqrt(2 * theirs * (1 - theirs) / RESAMPLES) + 1 / RESAMPLES)


def test_shares_of_seeds_are_tested_as_scipy_tests_them() -> None:
    rng = np.random.default_rng(11)
    a, b = rng.integers(0, 4, 90) / 3, rng.integers(0, 3, 90) / 3
    theirs = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=12, batch=1000
    ).pvalue
    test = paired_test([a], [b])
    assert test.p_value == pytest.approx(theirs, abs=5 * math.sqrt(2 * theirs * (1 - theirs) / RESAMPLES) + 1e-4)
    assert (test.wins, test.losses, test.ties) == (np.sum(a > b), np.sum(a < b), np.sum(a == b))


@pytest.mark.parametrize(("wins", "losses", "both"), [(0, 0, 5), (8, 2, 30), (1, 0, 0), (3, 17, 4)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(wins: int, losses: int, both: int) -> None:
    a = np.array([True] * wins + [False] * losses + [True] * both)
    b = np.array([False] * wins + [True] * losses + [True] * both)
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


@given(tasks)
@settings(max_examples=40, deadline=None)
def test_intervals_hold_the_estimate_and_stay_in_range(drawn: list[tuple[int, int]]) -> None:
    by_task = answers(drawn)
    low, high = bootstrap_average_interval(by_task, resamples=2000)
    assert 0.0 <= low <= macro(*by_task) + 1e-12
    assert macro(*by_task) - 1e-12 <= high <= 1.0


@given(tasks)
@settings(max_examples=40, deadline=None)
def test_a_model_does_not_differ_from_itself(drawn: list[tuple[int, int]]) -> None:
    a = answers(drawn)
    test = paired_test(a, a, resamples=500)
    assert (test.difference, test.interval_95, test.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert (test.wins, test.losses, test.ties) == (0, 0, sum(map(len, a)))
    assert all(mcnemar(x, x) == 1.0 for x in a)


@given(tasks)
@settings(max_examples=40, deadline=None)
def test_the_test_is_symmetric(drawn: list[tuple[int, int]]) -> None:
    a, b = answers(drawn), answers(drawn, shift=1)
    there, back = paired_test(a, b, resamples=2000), paired_test(b, a, resamples=2000)
    assert there.p_value == back.p_value
    assert there.difference == -back.difference
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.interval_95[0] - 1e-12 <= there.difference <= there.interval_95[1] + 1e-12
    assert [mcnemar(x, y) for x, y in zip(a, b, strict=True)] == [mcnemar(y, x) for x, y in zip(a, b, strict=True)]


def test_the_p_value_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(13)
    p = [
        paired_test([rng.random(200) < 0.5], [rng.random(200) < 0.5], seed=i, resamples=400).p_value for i in range(400)
    ]
    rejected = float(np.mean(np.array(p) < 0.05))
    assert rejected < 0.05 + 4 * math.sqrt(0.05 * 0.95 / len(p))
    assert rejected > 0.0


def test_nine_of_ten_intervals_of_a_simulation_hold_the_truth() -> None:
    rng = np.random.default_rng(14)
    held = [
        low <= 0.5 <= high
        for low, high in (bootstrap_interval(rng.random(300) < 0.5, seed=i, resamples=500) for i in range(300))
    ]
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / len(held)) - 0.01 < np.mean(held) < 0.99


def test_none_or_all_right_leaves_nothing_to_resample() -> None:
    assert bootstrap_interval(np.zeros(7, dtype=bool)) == (0.0, 0.0)
    assert bootstrap_interval(np.ones(7, dtype=bool)) == (1.0, 1.0)
    assert bootstrap_interval(np.array([True])) == (1.0, 1.0)


def test_one_item_cannot_show_a_difference() -> None:
    test = paired_test([np.array([True])], [np.array([False])])
    assert (test.difference, test.p_value, test.wins) == (1.0, 1.0, 1)


def test_all_against_none_is_as_clear_as_the_resamples_allow() -> None:
    test = paired_test([np.ones(100, dtype=bool)], [np.zeros(100, dtype=bool)], resamples=999)
    assert (test.difference, test.interval_95, test.p_value) == (1.0, (1.0, 1.0), 1 / 1000)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.41, 0.44, 0.40]
    mean, interval = seed_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert interval == pytest.approx(stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values)))


def test_seeds_that_agree_have_an_interval_without_width_and_one_seed_has_none() -> None:
    assert seed_interval([0.25, 0.25]) == (0.25, (0.25, 0.25))
    assert seed_interval([0.25]) == (0.25, None)


def test_holm_multiplies_the_smallest_most_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
def test_holm_is_between_the_p_value_and_bonferronis(p_values: np.ndarray) -> None:
    adjusted = np.array(holm(p_values.tolist()))
    assert np.all(adjusted >= p_values - 1e-15)
    assert np.all(adjusted <= np.minimum(1.0, len(p_values) * p_values) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(p_values)]) >= 0)


def answering(share: float, items: int = 400) -> np.ndarray:
    """The first items right; a better model is right wherever a worse one is."""
    return np.arange(items) < round(share * items)


def test_the_gap_closed_is_the_ratio_and_its_interval_holds_it() -> None:
    lora, afa, full = [[[answering(share)] * 2] * 2 for share in (0.4, 0.5, 0.6)]
    gap = gap_closed(afa, lora, full)
    assert gap.value == pytest.approx(0.5)
    assert gap.reason is None
    # Of the 80 items that tell full and LoRA apart in each of two tasks, half are won: a binomial share of 160.
    half = 1.96 * math.sqrt(0.25 / 160)
    assert gap.interval_95 == pytest.approx((0.5 - half, 0.5 + half), abs=0.15 * half)


def test_the_gap_closed_may_be_negative_or_above_one() -> None:
    assert gap_closed([[answering(0.3)]], [[answering(0.4)]], [[answering(0.6)]]).value == pytest.approx(-0.5)
    assert gap_closed([[answering(0.7)]], [[answering(0.4)]], [[answering(0.6)]]).value == pytest.approx(1.5)


@pytest.mark.parametrize("full", [0.38, 0.4, 0.4025])
def test_no_gap_closed_where_there_is_no_clear_gap(full: float) -> None:
    gap = gap_closed([[answering(0.5)]], [[answering(0.4)]], [[answering(full)]])
    assert (gap.value, gap.interval_95) == (None, None)
    assert gap.reason is not None
    assert "not clearly better" in gap.reason


def test_a_gap_that_is_barely_clear_has_a_finite_interval() -> None:
    lora, full = np.zeros(60, dtype=bool), np.arange(60) < 5
    gap = gap_closed([[np.arange(60) >= 55]], [[lora]], [[full]])
    assert gap.value == pytest.approx(1.0)
    assert gap.interval_95 is not None
    assert np.isfinite(gap.interval_95).all()


def test_seeds_that_disagree_widen_the_gap_closed() -> None:
    lora, full = [[answering(0.4)]] * 2, [[answering(0.6)]] * 2
    alike = gap_closed([[answering(0.5)], [answering(0.5)]], lora, full)
    apart = gap_closed([[answering(0.42)], [answering(0.58)]], lora, full)
    assert alike.value == pytest.approx(apart.value)
    assert alike.interval_95 is not None
    assert apart.interval_95 is not None
    assert np.diff(apart.interval_95) > 1.5 * np.diff(alike.interval_95)


def test_other_items_are_refused() -> None:
    one, two = np.ones(1, dtype=bool), np.ones(2, dtype=bool)
    empty = np.ones(0, dtype=bool)
    with pytest.raises(ValueError):
        paired_test([one], [two])
    with pytest.raises(ValueError):
        paired_test([one, one], [one])
    with pytest.raises(ValueError):
        mcnemar(empty, empty)
    with pytest.raises(ValueError):
        bootstrap_interval(empty)
    with pytest.raises(ValueError):
        bootstrap_average_interval([])
    with pytest.raises(ValueError):
        gap_closed([[one]], [[one], [one]], [[one]])
    with pytest.raises(ValueError):
        gap_closed([[one]], [[two]], [[one]])
    with pytest.raises(ValueError):
        gap_closed([], [], [])
