"""The accepted tokens of a study of EAGLE drafts as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afa_lora.report.formats import (
    AVERAGE,
    NOTHING,
    TOKENS,
    against,
    escaped,
    p_value,
    points,
    points_interval,
    state,
)

DECIMALS = 3


def markdown_accepted(numbers: Mapping[str, Any], legend: str) -> str:
    """The accepted tokens of one study as a Markdown table: one column for each set and shape, the paper's in brackets.

    Args:
        numbers: of `afa_lora.reproduce.numbers.study_numbers`.
        legend: how the intervals are to be read.
    """
    arms = numbers["arms"]
    columns = accepted_names(numbers)
    heads = ["", *map(escaped, columns), "average", "95 % interval"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for arm in arms:
        cells = [escaped(arm["name"])]
        cells += [accepted_cell(arm, column) or NOTHING for column in columns]
        average = arm["accuracy"].get(AVERAGE)
        cells += ["; ".join(filter(None, (accepted(average) if average else "", escaped(state(arm)))))]
        cells += [(accepted_interval(average) if average else "") or NOTHING]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{accepted_legend(numbers, legend)}."])


def terminal_accepted_row(arm: Mapping[str, Any]) -> dict[str, str]:
    """The cells of one arm by their column."""
    average, comparison = arm["accuracy"].get(AVERAGE), arm["comparison"]
    return {
        "accepted": accepted(average) if average else "",
        "95 % interval": accepted_interval(average) if average else "",
        "against": against(comparison) if comparison else "",
        "p": p_value(comparison["p_adjusted"]).removeprefix("= ") if comparison else "",
        "not finished": state(arm, messages=False),
    }


def accepted_names(numbers: Mapping[str, Any]) -> list[str]:
    """The columns, one for each set and shape."""
    return list(dict.fromkeys(column for arm in numbers["arms"] for column in arm["accepted"]))


def accepted_cell(arm: Mapping[str, Any], column: str) -> str:
    """``1.234``, and the paper's number in brackets where its column is of the same set and kind of shape."""
    value = arm["accepted"].get(column)
    if value is None:
        return ""
    paper = arm["paper"].get(column.partition(":")[0])  # of the shape "chain:5" the paper says "chain"
    return accepted(value) + (f" ({paper:.4f})" if paper is not None else "")


def accepted_difference(arm: Mapping[str, Any], column: str) -> str:
    """``+0.021 (−0.010 to +0.052)``: the difference to the baseline in this column, and its interval over prompts."""
    comparison = arm["accepted"].get(column, {}).get("comparison")
    if comparison is None:
        return ""
    return f"{points(comparison['difference'], TOKENS)} ({points_interval(comparison['interval_95'], TOKENS)})"


def accepted(value: Mapping[str, Any]) -> str:
    """The mean."""
    return f"{value['mean']:.{DECIMALS}f}"


def accepted_interval(value: Mapping[str, Any]) -> str:
    """``± 0.123`` over seeds, ``1.2 to 1.4`` over prompts; nothing where there is none."""
    interval = value["interval_95"]
    if interval is None:
        return ""
    if value["over"] == "seeds":
        return f"± {(interval[1] - interval[0]) / 2:.{DECIMALS}f}"
    return " to ".join(f"{bound:.{DECIMALS}f}" for bound in interval)


def accepted_legend(numbers: Mapping[str, Any], legend: str) -> str:
    """What the numbers are of."""
    asked = numbers["evaluation"] or {}
    parts = ["Accepted draft tokens a cycle, the bonus token not counted, the mean over the prompts"]
    if numbers["tasks"]:
        prompts = ", ".join(f"{task['items']} of {task['title']}" for task in numbers["tasks"])
        parts.append(f"prompts: {prompts}, answers of at most {asked.get('max_new_tokens')} tokens")
    if any(arm["paper"] for arm in numbers["arms"]):
        parts.append("in brackets the paper's, of another model")
    return "; ".join(filter(None, (*parts, legend)))
