"""The tables of a report as Markdown and for the terminal, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

MINUS = "−"
NOTHING = "–"
AVERAGE = "average"
UNBROKEN = ("average", "paper", "p")  # columns of the terminal's table that keep their width
HARNESS_HEADS = ("Task", "Metric", "Filter", "Run", "Value", "± standard error", "Items", "Shots", "Task version")


def share(value: float, decimals: int = 1) -> str:
    """A share as percent, without the sign: 0.412 is ``41.2``."""
    return f"{100 * value:.{decimals}f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: ``+1.20``."""
    return f"{100 * value:+.2f}".replace("-", MINUS)


def points_interval(interval: Sequence[float]) -> str:
    """``−0.40 to +2.80``."""
    return " to ".join(map(points, interval))


def p_value(value: float) -> str:
    """``= 0.043``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def accuracy(value: Mapping[str, Any], decimals: int = 1) -> str:
    """The mean in percent."""
    return share(value["mean"], decimals)


def accuracy_interval(value: Mapping[str, Any], decimals: int = 1) -> str:
    """``± 1.2`` for seeds, whose interval is symmetric; ``38.9 to 43.6`` for items; nothing where there is none."""
    interval = value["interval_95"]
    if interval is None:
        return ""
    if value["over"] == "seeds":
        return f"± {share((interval[1] - interval[0]) / 2, decimals)}"
    return " to ".join(share(bound, decimals) for bound in interval)


def paper_value(arm: Mapping[str, Any], key: str) -> str:
    """The paper's accuracy in percent, as printed there."""
    return f"{arm['paper'][key]:.2f}" if key in arm["paper"] else ""


def gap(arm: Mapping[str, Any]) -> str:
    """The gap closed in percent with its interval, or that there is none to close."""
    closed = arm["gap_closed"]
    if closed is None:
        return ""
    if closed["value"] is None:
        return "no clear gap"
    low, high = closed["interval_95"]
    text = f"{share(closed['value'], 0)} % ({share(low, 0)} to {share(high, 0)})"
    return " ".join(filter(None, (text, on_seeds(closed))))


def on_seeds(compared: Mapping[str, Any]) -> str:
    """``on seed 0 alone`` for a comparison that lacks planned seeds, otherwise nothing."""
    seeds = compared["seeds"]
    return f"on seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} alone" if compared["missing_seeds"] else ""


def mebibytes(size: int) -> str:
    """A number of bytes in MiB, without the unit."""
    return f"{size / 2**20:,.0f}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def state(arm: Mapping[str, Any], messages: bool = True) -> str:
    """What of an arm is not finished: ``seeds 0, 1: not started``; without seeds where it is so for all of them.

    ``messages`` are those of failures.
    """
    seeds: dict[str, list[str]] = {}
    for entry in arm["unfinished"]:
        status = entry["status"] if messages else entry["status"].partition(":")[0]
        seeds.setdefault(status, []).append(str(entry["seed"]))
    if len(seeds) == 1 and not arm["seeds"]:
        return next(iter(seeds))
    return "; ".join(f"seed{'s' * (len(some) > 1)} {', '.join(some)}: {status}" for status, some in seeds.items())


def markdown_table(numbers: Mapping[str, Any]) -> str:
    """The accuracies of one study as a Markdown table, the paper's in brackets.

    Args:
        numbers: of `afa_lora.reproduce.numbers.study_numbers`.
    """
    arms = numbers["arms"]
    with_paper, with_gap = any(arm["paper"] for arm in arms), any(arm["gap_closed"] for arm in arms)
    heads = ["", *(_escaped(task["title"]) for task in numbers["tasks"]), "average", "95 % interval"]
    heads += ["gap closed"] * with_gap + ["unparsed"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    keys = [task["name"] for task in numbers["tasks"]]
    for arm in arms:
        cells = [_escaped(arm["name"])]
        if arm["accuracy"]:
            average = [_cell(arm, AVERAGE, 2)] + [_escaped(state(arm))] * bool(arm["unfinished"])
            cells += [_cell(arm, key, 1) for key in keys] + ["; ".join(average)]
            cells += [accuracy_interval(arm["accuracy"][AVERAGE], 2) or NOTHING]
            cells += [gap(arm) or NOTHING] * with_gap
            cells += [NOTHING if arm["unparsed"] is None else f"{share(arm['unparsed'])} %"]
        else:
            cells += [NOTHING] * len(keys) + [_escaped(state(arm))] + [NOTHING] * (len(heads) - len(keys) - 2)
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
        outcome = "\n".join(f"- {_escaped(sentence)}" for sentence in study["outcome"])
        parts.append(f"## {_escaped(study['title'])}\n\n{outcome}\n\n{markdown_table(study)}\n")
    if report["harness"]:
        rows = [HARNESS_HEADS, ("---",) * len(HARNESS_HEADS), *harness_rows(report["harness"])]
        lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows]
        parts.append("## lm-evaluation-harness\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def terminal_table(numbers: Mapping[str, Any]) -> Table:
    """What fits a terminal: the averages, or the trainings where nothing is evaluated; empty columns are left out."""
    rows = [_terminal_row(arm) for arm in numbers["arms"]]
    if not any(arm["accuracy"] for arm in numbers["arms"]):
        rows = [_terminal_training_row(arm) for arm in numbers["arms"]]
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
        "against": _against(comparison) if comparison else "",
        "p": p_value(comparison["p_adjusted"]).removeprefix("= ") if comparison else "",
        "gap closed": gap(arm),
        "not finished": state(arm, messages=False),
    }


def _against(comparison: Mapping[str, Any]) -> str:
    return f"{comparison['baseline']} {points(comparison['difference'])} {on_seeds(comparison)}".rstrip()


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
    return "; ".join(texts[kind] for kind in ("seeds", "items") if kind in over)


def _legend(numbers: Mapping[str, Any], with_paper: bool) -> str:
    parts = ["Accuracy in percent", *(["in brackets the paper's"] if with_paper else []), legend(numbers)]
    return "; ".join(part for part in parts if part) + "."


def _cell(arm: Mapping[str, Any], key: str, decimals: int) -> str:
    paper = paper_value(arm, key)
    return accuracy(arm["accuracy"][key], decimals) + (f" ({paper})" if paper else "")


def _escaped(text: str) -> str:
    """A name that cannot break a Markdown table or bring HTML into it."""
    for plain, safe in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, safe)
    return " ".join(text.split())
