"""What an evaluation of drafts gives: the counts, the numbers that follow from them, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from afa_lora.eagle.evaluation.alpha import STEPS
from afa_lora.eagle.evaluation.live import LiveCounts
from afa_lora.eagle.evaluation.measures import (
    AlphaCounts,
    Measure,
    PromptCounts,
    Totals,
    alpha_totals,
    compare_per_prompt,
    compare_pooled,
    per_prompt,
    pooled,
    token_totals,
)

AVERAGE = "average"
KINDS = {"tokens": True, "accepted": False}  # with the bonus tokens, and without

C = TypeVar("C")
ByPrompt = Mapping[str, C]
"""The counts of one set, by the question's id."""


@dataclass(frozen=True)
class DraftEvaluation:
    """Drafts, compared on the same answers.

    Attributes:
        folder: where it lies.
        settings: what was measured: target, sets, numbers of questions, the length of the answers.
        cycles: (draft, shape, set) → the cycles of each prompt.
        alphas: (draft, set) → the right predictions of each prompt.
        live: (draft, shape, set) → the times of each prompt; empty unless asked for.
        results: the content of ``results.json``.
    """

    folder: Path
    settings: Mapping[str, Any]
    cycles: Mapping[tuple[str, str, str], ByPrompt[PromptCounts]]
    alphas: Mapping[tuple[str, str], ByPrompt[AlphaCounts]]
    live: Mapping[tuple[str, str, str], ByPrompt[LiveCounts]]
    results: Mapping[str, Any]

    def totals(self, draft: str, shape: str, bonus: bool = True) -> list[Totals]:
        """Tokens and cycles of each prompt, set by set, for `afa_lora.eagle.evaluation.measures`."""
        return [
            token_totals(list(self.cycles[draft, shape, name].values()), bonus) for name in self.settings["questions"]
        ]


def summarise(
    settings: Mapping[str, Any],
    cycles: Mapping[tuple[str, str, str], ByPrompt[PromptCounts]],
    alphas: Mapping[tuple[str, str], ByPrompt[AlphaCounts]],
    live: Mapping[tuple[str, str, str], ByPrompt[LiveCounts]],
) -> dict[str, Any]:
    """The numbers of ``results.json``; the arguments are the attributes of `DraftEvaluation`."""
    sets, shapes = list(settings["questions"]), list(settings["shapes"])
    drafts = list(settings["drafts"])
    scores, comparisons = [], []
    for shape in shapes:
        prompts = {draft: {name: list(cycles[draft, shape, name].values()) for name in sets} for draft in drafts}
        scores += [{"draft": draft, "shape": shape, **_scored(prompts[draft])} for draft in drafts]
        comparisons += [
            {"shape": shape, "first": first, "second": second, **_compared(prompts[first], prompts[second])}
            for second, first in combinations(drafts, 2)
        ]
    alpha = [
        {
            "draft": draft,
            **{
                f"{n}-alpha": _measured({name: alpha_totals(list(alphas[draft, name].values()), n) for name in sets})
                for n in range(STEPS)
            },
        }
        for draft in drafts
    ]
    timed = [
        _timed(draft, shape, {name: live[draft, shape, name] for name in sets}, cycles)
        for draft in drafts
        for shape in shapes
        if live
    ]
    return {"scores": scores, "comparisons": comparisons, "alpha": alpha, "live": timed}


def _scored(prompts: Mapping[str, Sequence[PromptCounts]]) -> dict[str, Any]:
    """How many prompts and cycles there are of each set, and what they give."""
    counted = {
        name: {"prompts": len(some), "cycles": sum(len(prompt.accepted) for prompt in some)}
        for name, some in prompts.items()
    }
    measured = {
        kind: _measured({name: token_totals(some, bonus) for name, some in prompts.items()})
        for kind, bonus in KINDS.items()
    }
    return {"counted": counted, **measured}


def _measured(totals: Mapping[str, Totals]) -> dict[str, Any]:
    """Each measure of each set, and of their average."""
    groups = {**{name: [values] for name, values in totals.items()}, AVERAGE: list(totals.values())}
    return {
        name: {"pooled": _plain(pooled(group)), "per_prompt": _plain(per_prompt(group))}
        for name, group in groups.items()
    }


def _compared(
    first: Mapping[str, Sequence[PromptCounts]], second: Mapping[str, Sequence[PromptCounts]]
) -> dict[str, Any]:
    """The tokens in a cycle of the first draft less those of the second one: of each set, and on average."""
    ours, theirs = ({name: token_totals(some, True) for name, some in one.items()} for one in (first, second))
    groups = {**{name: [name] for name in ours}, AVERAGE: list(ours)}
    found: dict[str, Any] = {}
    for measure, compare in (("pooled", compare_pooled), ("per_prompt", compare_per_prompt)):
        tests = {
            key: compare([ours[name] for name in names], [theirs[name] for name in names])
            for key, names in groups.items()
        }
        found[measure] = {key: None if test is None else asdict(test) for key, test in tests.items()}
    return found


def _timed(
    draft: str,
    shape: str,
    live: Mapping[str, ByPrompt[LiveCounts]],
    cycles: Mapping[tuple[str, str, str], ByPrompt[PromptCounts]],
) -> dict[str, Any]:
    """The speed-up of each set: seconds a token of plain decoding over those of speculative decoding."""
    totals = {
        name: np.array([(run.plain_for_as_many, run.speculative) for run in live[name].values()]) for name in live
    }
    return {
        "draft": draft,
        "shape": shape,
        "speed_up": {name: measures["pooled"] for name, measures in _measured(totals).items()},
        "sets": {
            name: {
                "prompts": len(runs),
                "plain_seconds": sum(run.plain for run in runs.values()),
                "speculative_seconds": sum(run.speculative for run in runs.values()),
                "plain_tokens": sum(run.plain_tokens for run in runs.values()),
                "speculative_tokens": sum(run.tokens for run in runs.values()),
                "plain_equal": sum(run.plain_equal for run in runs.values()),
                "equal": sum(run.equal for run in runs.values()),
                "cycles_as_replayed": sum(
                    run.accepted == cycles[draft, shape, name][number].accepted for number, run in runs.items()
                ),
            }
            for name, runs in live.items()
        },
    }


def _plain(measure: Measure | None) -> dict[str, Any] | None:
    return None if measure is None else asdict(measure)
