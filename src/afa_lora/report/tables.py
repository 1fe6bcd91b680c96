"""The tables of a report as Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from afa_lora.report.accepted_tables import markdown_accepted, terminal_accepted_row
from afa_lora.report.formats import (
    AVERAGE,
    NOTHING,
    accuracy,
    accuracy_interval,
    against,
    duration,
    escaped,
    gap,
    mebibytes,
    p_value,
    paper_value,
    share,
    state,
)
from afa_lora.report.reward_tables import markdown_rewards, steps_legend, terminal_reward_row

UNBROKEN = ("average", "accepted", "reward", "paper", "p")  # columns of the terminal's table that keep their width
HARNESS_HEADS = ("Task", "Metric", "Filter", "Run", "Value", "± standard error", "Items", "Shots", "Task version")


def by_rewards(numbers: Mapping[str, Any]) -> bool:
    """Whether a study's arms are compared by rewards; the numbers say so since there are such studies."""
    return numbers.get("workflow") == "grpo"


def by_accepted(numbers: Mapping[str, Any]) -> bool:
    """Whether a study's arms are drafts, compared by the tokens that are accepted."""
    return numbers.get("workflow") == "eagle"


def markdown_table(numbers: Mapping[str, Any]) -> str:
    """The accuracies of one study as a Markdown table, the paper's in brackets; for GRPO the rewards,
    for EAGLE the accepted tokens.

    Args:
        numbers: of `afa_lora.reproduce.numbers.study_numbers`.
    """
    if by_rewards(numbers):
        return markdown_rewards(numbers, legend(numbers))
    if by_accepted(numbers):
        return markdown_accepted(numbers, legend(numbers))
    arms = numbers["arms"]
    with_paper, with_gap = any(arm["paper"] for arm in arms), any(arm["gap_closed"] for arm in arms)
    heads = ["", *(escaped(task["title"]) for task in numbers["tasks"]), "average", "95 % interval"]
    heads += ["gap closed"] * with_gap + ["unparsed"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    keys = [task["name"] for task in numbers["tasks"]]
    for arm in arms:
        cells = [escaped(arm["name"])]
        if arm["accuracy"]:
            average = [_cell(arm, AVERAGE, 2)] + [escaped(state(arm))] * bool(arm["unfinished"])
            cells += [_cell(arm, key, 1) for key in keys] + ["; ".join(average)]
            cells += [accuracy_interval(arm["accuracy"][AVERAGE], 2) or NOTHING]
            cells += [gap(arm) or NOTHING] * with_gap
            cells += [NOTHING if arm["unparsed"] is None else f"{share(arm['unparsed'])} %"]
        else:
            cells += [NOTHING] * len(keys) + [escaped(state(arm))] + [NOTHING] * (len(heads) - len(keys) - 2)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _legend(numbers, with_paper)])


def harness_rows(harness: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The numbers of lm-evaluation-harness as it reports them, with `HARNESS_HEADS` above; like tasks together."""
    rows = []
    for run, results in harness.items():
        for task, numbers in results["tasks"].items():
            rest = [str(numbers[key]) for key in ("items", "num_fewshot", "version")]
            for metric in numbers["metrics"]:
                error = NOTHING if metric["stderr"] is None else f"{metric['stderr']:.4f}"
                rows.append((task, metric["metric"], metric["filter"], run, f"{metric['value']:.4f}", error, *rest))
    return sorted(rows, key=lambda row: row[:3])


def markdown_report(report: Mapping[str, Any]) -> str:
    """All tables of `afa_lora.reproduce.report.make_report` as Markdown, with their outcome above them."""
    parts = []
    for study in report["studies"]:
        outcome = "\n".join(f"- {escaped(sentence)}" for sentence in study["outcome"])
        parts.append(f"## {escaped(study['title'])}\n\n{outcome}\n\n{markdown_table(study)}\n")
    if report["harness"]:
        rows = [HARNESS_HEADS, ("---",) * len(HARNESS_HEADS), *harness_rows(report["harness"])]
        lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
        parts.append("## lm-evaluation-harness\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def terminal_table(numbers: Mapping[str, Any]) -> Table:
    """What fits a terminal: the averages, or the trainings where nothing is evaluated; empty columns are left out."""
    evaluated = any(arm["accuracy"] for arm in numbers["arms"])
    row_of = _terminal_row if evaluated else _terminal_training_row
    if by_rewards(numbers) or by_accepted(numbers):
        row_of = terminal_reward_row if by_rewards(numbers) else terminal_accepted_row
    rows = [row_of(arm) for arm in numbers["arms"]]
    heads = [head for head in rows[0] if any(row[head] for row in rows)] if rows else []
    table = Table("", *heads, title=Text(numbers["title"]), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.show_edge = False
    for column, head in zip(table.columns[1:], heads, strict=True):
        column.justify = "right"
        column.no_wrap = head in UNBROKEN
    for arm, row in zip(numbers["arms"], rows, strict=True):
        table.add_row(Text(arm["name"]), *(Text(row[head]) for head in heads))
    return table


def _terminal_row(arm: Mapping[str, Any]) -> dict[str, str]:
    average, comparison = arm["accuracy"].get(AVERAGE), arm["comparison"]
    return {
        "average": accuracy(average, 2) if average else "",
        "95 % interval": accuracy_interval(average, 2) if average else "",
        "paper": paper_value(arm, AVERAGE),
        "against": against(comparison) if comparison else "",
        "p": p_value(comparison["p_adjusted"]).removeprefix("= ") if comparison else "",
        "gap closed": gap(arm),
        "not finished": state(arm, messages=False),
    }


def _terminal_training_row(arm: Mapping[str, Any]) -> dict[str, str]:
    training = arm["training"] or {}
    loss, speed, own = (training.get(key) for key in ("final_loss", "tokens_per_second", "own_test"))
    return {
        "final loss": "" if loss is None else f"{loss:.4f}",
        "tokens/s": "" if speed is None else f"{speed:,.0f}",
        "peak memory": f"{mebibytes(training['peak_memory_bytes'])} MiB" if training else "",
        "time": duration(training["seconds"]) if training else "",
        "own test items": f"{own['correct']} of {own['items']}" if own else "",
        "eight tasks": state(arm, messages=False),
    }


def terminal_harness_table(harness: Mapping[str, Mapping[str, Any]]) -> Table:
    """The same of lm-evaluation-harness."""
    table = Table(*HARNESS_HEADS, title="lm-evaluation-harness")
    for row in harness_rows(harness):
        table.add_row(*map(Text, row))
    return table


def legend(numbers: Mapping[str, Any]) -> str:
    """How the intervals of a study's table are to be read."""
    over = {arm["accuracy"][AVERAGE]["over"] for arm in numbers["arms"] if arm["accuracy"]}
    texts = {
        "seeds": "± is half of Student's 95 % interval over the seeds: wide for few, of no width where they agree",
        "items": "“a to b” is the 95 % bootstrap interval over the test items (one seed)",
    }
    return "; ".join(
        [texts[kind] for kind in ("seeds", "items") if kind in over]
        + (steps_legend(numbers) if by_rewards(numbers) else [])
    )


def _legend(numbers: Mapping[str, Any], with_paper: bool) -> str:
    parts = ["Accuracy in percent", *(["in brackets the paper's"] if with_paper else []), legend(numbers)]
    return "; ".join(part for part in parts if part) + "."


def _cell(arm: Mapping[str, Any], key: str, decimals: int) -> str:
    paper = paper_value(arm, key)
    return accuracy(arm["accuracy"][key], decimals) + (f" ({paper})" if paper else "")
