"""The numbers of an evaluation of drafts as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from afa_lora.eagle.evaluation.alpha import STEPS
from afa_lora.eagle.evaluation.results import AVERAGE, DraftEvaluation
from afa_lora.report.formats import MINUS, NOTHING, escaped, p_value


@dataclass(frozen=True)
class Rows:
    """A table: its title, its heads and its rows; the first ``names`` columns hold names, the others numbers."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int

    def for_terminal(self) -> Table:
        """As Rich prints it, without the title, which Rich would fold to the table's width."""
        table = Table(*self.heads, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for number, column in enumerate(table.columns):
            column.justify = "left" if number < self.names else "right"
            column.no_wrap = number >= self.names
            column.overflow = "fold"
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def as_markdown(self) -> str:
        """A heading and a table."""
        rule = ["---" if number < self.names else "---:" for number in range(len(self.heads))]
        lines = [[escaped(cell) for cell in row] for row in (self.heads, *self.rows)]
        lines.insert(1, rule)
        return "\n".join([f"### {escaped(self.title)}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def make_tables(evaluation: DraftEvaluation) -> list[Rows]:
    """The tables: tokens in a cycle, their average, n-α, and the speed-up where it was measured."""
    results, basis = evaluation.results, describe_basis(evaluation.settings)
    tables = [_cycles(evaluation, basis), _averages(evaluation, basis), _alphas(evaluation, basis)]
    return [*tables, _speed(evaluation, basis)] if results["live"] else tables


def describe_basis(settings: Mapping[str, Any]) -> str:
    """``10 + 10 questions of mt-bench, gsm8k; answers of at most 128 tokens``."""
    counts = settings["questions"]
    listed = " + ".join(str(len(numbers)) for numbers in counts.values())
    return f"{listed} questions of {', '.join(counts)}; answers of at most {settings['max_new_tokens']} tokens"


def markdown(evaluation: DraftEvaluation) -> str:
    """All tables as Markdown."""
    notes = "\n".join(f"- {escaped(note)}" for note in make_notes(evaluation))
    return "\n\n".join([*(rows.as_markdown() for rows in make_tables(evaluation)), notes]) + "\n"


def print_drafts(evaluation: DraftEvaluation, console: Console) -> None:
    """Print the tables, what they mean, and where the files lie."""
    for rows in make_tables(evaluation):
        console.print(Text(rows.title, style="bold"), soft_wrap=True)
        console.print(rows.for_terminal())
    for note in (*make_notes(evaluation), f"Everything is in {evaluation.folder}."):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def make_notes(evaluation: DraftEvaluation) -> list[str]:
    """What the numbers of the tables are."""
    drafts = list(evaluation.settings["drafts"])
    notes = [
        f"The target is {evaluation.settings['model']} in {evaluation.settings['dtype']}; its greedy answers are "
        "recorded once, and every draft is scored on them.",
        "Numbers are pooled: sums over a set's cycles. An average gives each set the same weight. Intervals are 95 % "
        "bootstraps over questions; they say nothing of another training of the same draft.",
    ]
    if len(drafts) > 1:
        notes.append(
            f"− {drafts[0]}: the difference to {drafts[0]} on the same questions, by a paired bootstrap; p by a paired "
            "permutation test, not corrected for the number of drafts."
        )
    if evaluation.results["live"]:
        parts = [part for run in evaluation.results["live"] for part in run["sets"].values()]
        changed = sum(part["prompts"] - part["plain_equal"] for part in parts)
        notes.append(
            "Speed-up: seconds a token of plain greedy decoding over those of speculative decoding, one prompt at a "
            "time, alternating. Equal: questions whose answers are the recorded ones, token by token."
        )
        if changed or any(part["equal"] < part["prompts"] for part in parts):
            notes.append(
                f"Not all are equal; plain decoding itself gave other answers than the recorded ones {changed} times. "
                "Where the two likeliest tokens are nearly equal, rounding decides between them."
            )
    return notes


def _cycles(evaluation: DraftEvaluation, basis: str) -> Rows:
    sets = list(evaluation.settings["questions"])
    rows = []
    for score in evaluation.results["scores"]:
        whole, drafted = (score[kind] for kind in ("tokens", "accepted"))
        cells = [_value(whole[name]["pooled"]) for name in (*sets, AVERAGE)]
        rows.append((score["shape"], score["draft"], *cells, _value(drafted[AVERAGE]["pooled"])))
    title = f"Tokens in a cycle, the bonus token included; drafted: the average without it ({basis})"
    return Rows(title, ("shape", "draft", *sets, AVERAGE, "drafted"), rows, names=2)


def _averages(evaluation: DraftEvaluation, basis: str) -> Rows:
    drafts = list(evaluation.settings["drafts"])
    paired = len(drafts) > 1
    heads = ["shape", "draft", AVERAGE, "95 % interval", *([f"− {drafts[0]}", "95 % interval", "p"] if paired else [])]
    rows = []
    for score in evaluation.results["scores"]:
        average = score["tokens"][AVERAGE]["pooled"]
        row = [score["shape"], score["draft"], _value(average), _interval(average)]
        rows.append(tuple(row + (_against(evaluation.results, score, drafts[0]) if paired else [])))
    return Rows(f"The average tokens in a cycle ({basis})", tuple(heads), rows, names=2)


def _against(results: Mapping[str, Any], score: Mapping[str, Any], first: str) -> list[str]:
    key = (score["shape"], score["draft"], first)
    tests = (c["pooled"][AVERAGE] for c in results["comparisons"] if (c["shape"], c["first"], c["second"]) == key)
    test = next(tests, None)
    if test is None:
        return [NOTHING] * 3
    low, high = test["interval_95"]
    return [
        _signed(test["difference"]),
        f"{_signed(low)} to {_signed(high)}",
        p_value(test["p_value"]).removeprefix("= "),
    ]


def _alphas(evaluation: DraftEvaluation, basis: str) -> Rows:
    keys = [f"{n}-alpha" for n in range(STEPS)]
    rows = [
        (numbers["draft"], *(_percent(numbers[key][AVERAGE]["pooled"]) for key in keys))
        for numbers in evaluation.results["alpha"]
    ]
    title = f"n-α: right predictions after n own ones, in percent, average over sets ({basis})"
    return Rows(title, ("draft", *(f"{n}-α" for n in range(STEPS))), rows, names=1)


def _speed(evaluation: DraftEvaluation, basis: str) -> Rows:
    rows = []
    for run in evaluation.results["live"]:
        for name, speed_up in run["speed_up"].items():
            parts = [run["sets"][name]] if name in run["sets"] else list(run["sets"].values())
            plain, with_draft, equal, prompts = (
                sum(part[key] for part in parts) for key in ("plain_seconds", "speculative_seconds", "equal", "prompts")
            )
            # An average of sets' ratios is not the ratio of their summed seconds.
            seconds = [f"{plain:.1f}", f"{with_draft:.1f}"] if name in run["sets"] else ["", ""]
            cells = [_value(speed_up, 2), _interval(speed_up, 2), *seconds]
            rows.append((run["shape"], run["draft"], name, *cells, f"{equal} of {prompts}"))
    title = f"Speed-up over plain decoding on {evaluation.settings['hardware']} ({basis})"
    heads = ("shape", "draft", "set", "speed-up", "95 % interval", "plain s", "draft s", "equal")
    return Rows(title, heads, rows, names=3)


def _value(measure: Mapping[str, Any] | None, decimals: int = 3) -> str:
    return NOTHING if measure is None else f"{measure['value']:.{decimals}f}"


def _percent(measure: Mapping[str, Any] | None) -> str:
    return NOTHING if measure is None else f"{100 * measure['value']:.1f}"


def _interval(measure: Mapping[str, Any] | None, decimals: int = 3) -> str:
    interval = None if measure is None else measure["interval_95"]
    return NOTHING if interval is None else " to ".join(f"{bound:.{decimals}f}" for bound in interval)


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", MINUS)


__all__ = ["Rows", "describe_basis", "make_notes", "make_tables", "markdown", "print_drafts"]
