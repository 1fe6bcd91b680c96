"""The result of a run, for a person."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from afa_lora.evaluation import Accuracy
from afa_lora.sft.run import SftResult
from afa_lora.tuning.folder import print_files


def print_result(result: SftResult, console: Console) -> None:
    """Print the numbers of one run and where its files lie."""
    console.print(comparison({result.curve.name: result}, result.before))
    print_files(result.folder, console)


def comparison(results: Mapping[str, SftResult], before: Accuracy | None) -> Table:
    """A table with the untrained model, if it was tested, and one column per run."""
    table = Table("", *(["before"] if before else []), *results)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "accuracy on held-out items": [_accuracy(r.after) for r in results.values()],
        "  95% interval": [_interval(r.after) for r in results.values()],
        "loss on held-out items": [_number(r.test_loss) for r in results.values()],
        "training loss, last tenth": [_number(r.curve.final_loss) for r in results.values()],
        "training time": [f"{r.seconds:.0f} s" for r in results.values()],
        "peak memory": [f"{r.peak_memory / 2**20:,.0f} MiB" for r in results.values()],
        "merged = unmerged to": [_merge(r) for r in results.values()],
    }
    first = {"accuracy on held-out items": _accuracy(before), "  95% interval": _interval(before)}
    for name, cells in rows.items():
        table.add_row(name, *([first.get(name, "")] if before else []), *cells)
    return table


def _accuracy(accuracy: Accuracy | None) -> str:
    return "–" if accuracy is None else f"{accuracy.share:.1%} ({accuracy.correct}/{accuracy.items})"


def _interval(accuracy: Accuracy | None) -> str:
    return "–" if accuracy is None else "{:.1%} – {:.1%}".format(*accuracy.interval)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _merge(result: SftResult) -> str:
    """The largest change of a logit, beside the largest logit."""
    report = result.merge
    return "–" if report is None else f"{report.max_logit_difference:.1e} of {report.max_logit:.0f}"
