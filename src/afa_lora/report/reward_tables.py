"""The rewards of a study of GRPO as Markdown and for the terminal, times 100 as the paper prints them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afa_lora.report.formats import (
    AVERAGE,
    NOTHING,
    accuracy,
    accuracy_interval,
    against,
    escaped,
    gap,
    p_value,
    paper_gap,
    share,
    state,
)

STEPS = "“a to b” of a training reward is that over the steps of its last fifth"


def markdown_rewards(numbers: Mapping[str, Any], legend: str) -> str:
    """The rewards of one study as a Markdown table.

    Args:
        numbers: of `afa_lora.reproduce.numbers.study_numbers`.
        legend: how the intervals are to be read.
    """
    arms = numbers["arms"]
    with_gap, with_paper = any(arm["gap_closed"] for arm in arms), any(arm["paper_gaps_closed"] for arm in arms)
    heads = ["", "validation reward", "95 % interval", "training reward, first → last fifth", "95 % interval"]
    heads += ["gap closed on validation", "gap closed in training"] * with_gap
    heads += ["gap closed in the paper"] * with_paper + ["groups with equal rewards"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for arm in arms:
        cells = [escaped(arm["name"])]
        reward, unfinished = arm["accuracy"].get(AVERAGE), escaped(state(arm))
        cells += ["; ".join(filter(None, (accuracy(reward, 2) if reward else "", unfinished)))]
        cells += [(accuracy_interval(reward, 2) if reward else "") or NOTHING]
        cells += [training_reward(arm) or NOTHING, training_interval(arm) or NOTHING]
        cells += [gap(arm) or NOTHING, training_gap(arm) or NOTHING] * with_gap
        cells += [paper_gap(arm)] * with_paper + [equal_groups(arm) or NOTHING]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "; ".join(filter(None, ("Rewards × 100", legend))) + "."])


def terminal_reward_row(arm: Mapping[str, Any]) -> dict[str, str]:
    """The cells of one arm by their column."""
    reward, comparison = arm["accuracy"].get(AVERAGE), arm["comparison"]
    return {
        "reward": accuracy(reward, 2) if reward else "",
        "95 % interval": accuracy_interval(reward, 2) if reward else "",
        "in training": training_reward(arm),
        "against": against(comparison) if comparison else "",
        "p": p_value(comparison["p_adjusted"]).removeprefix("= ") if comparison else "",
        "gap closed": gap(arm),
        "not finished": state(arm, messages=False),
    }


def training_reward(arm: Mapping[str, Any]) -> str:
    """``20.1 → 35.2``: the mean reward of the first fifth of the steps and that of the last."""
    rewards = arm["training_rewards"]
    return f"{share(rewards['first_mean'])} → {share(rewards['mean'])}" if rewards else ""


def training_interval(arm: Mapping[str, Any]) -> str:
    """The interval of the latter."""
    return accuracy_interval(arm["training_rewards"]) if arm["training_rewards"] else ""


def training_gap(arm: Mapping[str, Any]) -> str:
    """The gap closed on it."""
    return gap(arm["training_rewards"]) if arm["training_rewards"] else ""


def equal_groups(arm: Mapping[str, Any]) -> str:
    """How many of the groups of completions had equal rewards: ``12 of 480``."""
    rewards = arm["training_rewards"]
    return f"{rewards['groups_with_equal_rewards']:,} of {rewards['groups']:,}" if rewards else ""


def steps_legend(numbers: Mapping[str, Any]) -> list[str]:
    """How the intervals of training rewards are to be read, where they are not over the seeds."""
    over = {arm["training_rewards"]["over"] for arm in numbers["arms"] if arm["training_rewards"]}
    return [STEPS] * ("steps" in over)
