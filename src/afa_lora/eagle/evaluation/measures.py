"""What the counts of a draft say about it.

A prompt is a question with all its turns: turns of one conversation are not independent, so the bootstrap draws whole
questions. An average over sets gives each set the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afa_lora.evaluation.statistics import (
    Interval,
    PairedTest,
    bootstrap_average_interval,
    bootstrap_ratio_interval,
    paired_ratio_test,
    paired_test,
)


@dataclass(frozen=True)
class PromptCounts:
    """The cycles of one prompt.

    Attributes:
        accepted: of each cycle, how many draft tokens were accepted and kept.
        tokens: that the cycles gave, their bonus tokens included. A cycle that the answer's end cuts may keep none.
    """

    accepted: tuple[int, ...]
    tokens: int

    def __add__(self, other: PromptCounts) -> PromptCounts:
        return PromptCounts(self.accepted + other.accepted, self.tokens + other.tokens)


@dataclass(frozen=True)
class AlphaCounts:
    """Right predictions of one prompt; see `afa_lora.eagle.evaluation.alpha.alpha_counts`.

    Attributes:
        hits: for n = 0, 1, …, how many predictions after n own ones were right.
        positions: how many there were.
    """

    hits: tuple[int, ...]
    positions: tuple[int, ...]

    def __add__(self, other: AlphaCounts) -> AlphaCounts:
        pairs = ((self.hits, other.hits), (self.positions, other.positions))
        hits, positions = (tuple(a + b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return AlphaCounts(hits, positions)


@dataclass(frozen=True)
class Measure:
    """A number with its 95 % interval: a bootstrap over prompts; None where a set has one prompt only."""

    value: float
    interval_95: Interval | None


Totals = np.ndarray
"""(prompts, 2): what each prompt of a set adds to a ratio's numerator and denominator, the latter above 0."""


def token_totals(prompts: Sequence[PromptCounts], bonus: bool) -> Totals:
    """Tokens and cycles of each prompt; a prompt without a cycle, whose answer is one token, is left out.

    Args:
        prompts: of one set.
        bonus: all tokens that the cycles gave (EAGLE's τ), or only those that the
            draft proposed.
    """
    rows = [(p.tokens if bonus else sum(p.accepted), len(p.accepted)) for p in prompts if p.accepted]
    return np.array(rows, dtype=float).reshape(-1, 2)


def alpha_totals(prompts: Sequence[AlphaCounts], n: int) -> Totals:
    """Right predictions and positions of n-α; a prompt without such a position is left out."""
    rows = [(p.hits[n], p.positions[n]) for p in prompts if p.positions[n]]
    return np.array(rows, dtype=float).reshape(-1, 2)


def pooled(by_set: Sequence[Totals]) -> Measure | None:
    """The sum over the prompts of a set over that of the cycles: each cycle counts alike. The mean over sets.

    Args:
        by_set: of each set; ``None`` comes back where one of them has no prompts.
    """
    if not _some(by_set):
        return None
    value = float(np.mean([totals[:, 0].sum() / totals[:, 1].sum() for totals in by_set]))
    return Measure(value, bootstrap_ratio_interval(by_set) if _some(by_set, 2) else None)


def per_prompt(by_set: Sequence[Totals]) -> Measure | None:
    """The mean over the prompts of a set of their own ratios: each prompt counts alike. The mean over sets."""
    if not _some(by_set):
        return None
    ratios = _ratios(by_set)
    value = float(np.mean([values.mean() for values in ratios]))
    return Measure(value, bootstrap_average_interval(ratios) if _some(by_set, 2) else None)


def compare_pooled(first: Sequence[Totals], second: Sequence[Totals]) -> PairedTest | None:
    """The first draft's `pooled` less the second one's, on the same prompts; None where a set has one only."""
    return paired_ratio_test(first, second) if _some(first, 2) else None


def compare_per_prompt(first: Sequence[Totals], second: Sequence[Totals]) -> PairedTest | None:
    """The first draft's `per_prompt` less the second one's, on the same prompts; None where a set has one only."""
    return paired_test(_ratios(first), _ratios(second)) if _some(first, 2) else None


def _some(by_set: Sequence[Totals], least: int = 1) -> bool:
    return bool(by_set) and all(len(totals) >= least for totals in by_set)


def _ratios(by_set: Sequence[Totals]) -> list[np.ndarray]:
    return [totals[:, 0] / totals[:, 1] for totals in by_set]
