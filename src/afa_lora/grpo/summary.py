"""The result of a GRPO training, for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from afa_lora.grpo.run import GrpoResult, Tested
from afa_lora.tuning.card import accuracy_text
from afa_lora.tuning.folder import print_files


def print_result(result: GrpoResult, console: Console) -> None:
    """Print the numbers of one run and where its files lie."""
    before, after = result.before, result.after
    table = Table("", *(["before"] if before else []), result.curve.name)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "mean reward on held-out items": (_reward(before), _reward(after)),
        "accuracy on held-out items": (_accuracy(before), _accuracy(after)),
        "sampled reward, first → last fifth": ("", str(result.rise) if result.rise else "–"),
        "groups with equal rewards": ("", f"{result.equal_groups:,} of {result.groups:,}"),
        "log-prob. old against rollout": ("", _difference(result)),
        "training time": ("", f"{result.seconds:.0f} s"),
        "peak memory": ("", f"{result.peak_memory / 2**20:,.0f} MiB"),
    }
    for name, cells in rows.items():
        table.add_row(name, *(cells if before else cells[1:]))
    console.print(table)
    print_files(result.folder, console)


def _reward(tested: Tested | None) -> str:
    if tested is None:
        return "–"
    interval = tested.interval
    return f"{tested.mean:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _accuracy(tested: Tested | None) -> str:
    return accuracy_text(tested.accuracy if tested else None)


def _difference(result: GrpoResult) -> str:
    difference = result.logprob_difference
    return "–" if difference is None else f"at most {difference:.1e} a step"
