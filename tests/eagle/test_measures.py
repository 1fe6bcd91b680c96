"""The measures of counts whose averages are known, and n-α against chains drawn one by one."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import DynamicCache, PreTrainedModel

from afa_lora.eagle.evaluation.alpha import alpha_counts
from afa_lora.eagle.evaluation.measures import (
    AlphaCounts,
    PromptCounts,
    alpha_totals,
    compare_per_prompt,
    compare_pooled,
    per_prompt,
    pooled,
    token_totals,
)
from afa_lora.eagle.target import TargetEnds
from afa_lora.evaluation.statistics import bootstrap_ratio_interval, paired_ratio_test
from tests.eagle.recorded import follower, learner, recorded, without_layers

PROMPTS = [
    PromptCounts((2, 0, 1), 6),
    PromptCounts((3,), 3),  # cut by the answer's end: no bonus token
    PromptCounts((), 0),  # an answer of one token
]


def random_totals(seed: int, items: int = 60) -> np.ndarray:
    """Tokens and cycles: answers of some 40 tokens, 1.5 to 3 a cycle."""
    rng = np.random.default_rng(seed)
    cycles = rng.integers(10, 30, items)
    return np.stack((np.round(cycles * rng.uniform(1.5, 3, items)), cycles), axis=1)


@pytest.mark.parametrize(("bonus", "whole", "each"), [(True, 9 / 4, (2 + 3) / 2), (False, 6 / 4, (1 + 3) / 2)])
def test_averages_of_known_counts(bonus: bool, whole: float, each: float) -> None:
    totals = token_totals(PROMPTS, bonus)
    all_cycles, by_prompt = pooled([totals]), per_prompt([totals])
    assert all_cycles is not None
    assert by_prompt is not None
    assert all_cycles.value == pytest.approx(whole)
    assert by_prompt.value == pytest.approx(each)
    other = token_totals([PromptCounts((0, 0), 2)], bonus)
    both = pooled([totals, other])
    assert both is not None
    assert both.value == pytest.approx((whole + (1 if bonus else 0)) / 2)  # each set counts alike


def test_turns_of_a_question_add_up() -> None:
    assert PROMPTS[0] + PROMPTS[1] == PromptCounts((2, 0, 1, 3), 9)
    assert AlphaCounts((2, 1), (3, 2)) + AlphaCounts((1, 0), (1, 0)) == AlphaCounts((3, 1), (4, 2))


def test_nothing_is_measured_of_no_cycle() -> None:
    nothing = token_totals([PromptCounts((), 0)], True)
    assert pooled([nothing]) is None
    assert per_prompt([nothing]) is None
    assert compare_pooled([nothing], [nothing]) is None
    assert pooled([alpha_totals([AlphaCounts((1, 0), (1, 0))], 1)]) is None


def test_the_ratios_interval_is_scipys_bootstrap() -> None:
    totals = random_totals(1)
    ours = bootstrap_ratio_interval([totals])
    theirs = stats.bootstrap(
        tuple(totals.T), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile", rng=2
    )
    width = ours[1] - ours[0]
    assert (
        np.abs(np.array(ours) - theirs.confidence_interval).max() < 0.06 * width
    )  # five standard errors of a quantile


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    whole = random_totals(3, 100_000)
    truth = whole[:, 0].sum() / whole[:, 1].sum()
    intervals = [bootstrap_ratio_interval([whole[i * 80 : (i + 1) * 80]], resamples=400) for i in range(300)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert 265 <= covered <= 298  # 285 expected, standard deviation 4; a bootstrap over 80 items is a little too narrow


def test_the_permutation_test_is_the_enumeration_of_all_swaps() -> None:
    a, b = random_totals(4, 9), random_totals(5, 9)
    differences = []
    for swaps in itertools.product((False, True), repeat=9):
        swapped = np.array(swaps)[:, None]
        first, second = np.where(swapped, b, a).sum(0), np.where(swapped, a, b).sum(0)
        differences.append(first[0] / first[1] - second[0] / second[1])
    found = paired_ratio_test([a], [b])
    assert found.difference == pytest.approx(differences[0])
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    assert found.p_value == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 10_000) + 1e-3)


def test_pairing_finds_a_small_difference_in_spread_prompts() -> None:
    a = random_totals(6)
    b = a.copy()
    b[:, 1] += 1  # each prompt takes one cycle more
    found = compare_pooled([a], [b])
    assert found is not None
    assert found.wins == len(a)
    assert found.interval_95[0] > 0
    assert found.p_value < 0.001
    alone, other = bootstrap_ratio_interval([a]), bootstrap_ratio_interval([b])
    assert alone[0] < other[1]  # unpaired, the two intervals overlap
    by_prompt = compare_per_prompt([a], [b])
    assert by_prompt is not None
    assert by_prompt.difference == pytest.approx(np.mean(a[:, 0] / a[:, 1] - b[:, 0] / b[:, 1]))
    same = compare_pooled([a], [a])
    assert same is not None
    assert (same.difference, same.interval_95, same.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("bad", [np.zeros((0, 2)), np.array([[1.0, 0.0]])])
def test_a_ratio_needs_items_with_a_denominator(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="denominator"):
        bootstrap_ratio_interval([bad])


def test_alpha_of_drafts_that_are_always_and_never_right(target: PreTrainedModel) -> None:
    target = without_layers(target)
    ends, turn = TargetEnds.of(target, "tiny"), recorded(target, 12)
    there = tuple(len(turn.answer) - 1 - n for n in range(4))
    assert alpha_counts(follower(ends), ends, turn, 4) == AlphaCounts(there, there)
    assert alpha_counts(follower(ends, sign=-1.0), ends, turn, 4) == AlphaCounts((0, 0, 0, 0), there)


def test_alpha_of_an_untrained_draft_is_small(target: PreTrainedModel) -> None:
    target = target.double()
    ends, turn = TargetEnds.of(target, "tiny"), recorded(target, 120)
    torch.manual_seed(1)
    counts = alpha_counts(ends.new_draft(torch.float64).eval(), ends, turn, 3)
    assert all(hits < 0.2 * positions for hits, positions in zip(counts.hits, counts.positions, strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_alpha_equals_chains_drawn_one_by_one(target: PreTrainedModel, length: int) -> None:
    target = target.double()
    ends, turn = TargetEnds.of(target, "tiny"), recorded(target, length)
    draft, steps = learner(ends, recorded(target, 40)), 4
    hits, positions = [0] * steps, [0] * steps
    embedded, last = ends.embed(turn.tokens)[None], len(turn.tokens) - 1
    for start in range(turn.prompt - 1, last - 1):
        cache = DynamicCache()
        with torch.no_grad():
            feature = draft(embedded[:, 1 : start + 2], turn.features[None, : start + 1], past_key_values=cache)[:, -1:]
            for n in range(min(steps, last - start - 1)):
                if n:
                    feature = draft(embedded[:, start + n + 1, None], feature, past_key_values=cache)
                hits[n] += int(ends.logits(feature[0, 0]).argmax() == turn.tokens[start + n + 2])
                positions[n] += 1
    assert alpha_counts(draft, ends, turn, steps) == AlphaCounts(tuple(hits), tuple(positions))
    if length == 40:  # or the two would agree on little
        assert all(0 < right < there for right, there in zip(hits, positions, strict=True))


def test_one_prompt_has_no_interval() -> None:
    one, many = random_totals(1, 1), random_totals(2, 5)
    for measure, compare in ((pooled, compare_pooled), (per_prompt, compare_per_prompt)):
        found = measure([many, one])
        assert found is not None
        assert found.interval_95 is None
        assert compare([many, one], [many, one]) is None
