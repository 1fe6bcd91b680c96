"""The result of a draft's training, for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from afa_lora.eagle.run import EagleResult
from afa_lora.tuning.folder import print_files


def print_result(result: EagleResult, console: Console) -> None:
    """Print the numbers of one run and where its files lie."""
    table = Table("", result.curve.name)
    table.columns[1].justify = "right"
    test, merge = result.test or {}, result.merge
    rows = {
        "accuracy on held-out conversations": _share(test.get("accuracy")),
        "loss on held-out conversations": _number(test.get("loss")),
        "  of the features": _number(test.get("feature_loss")),
        "  of the tokens (nats)": _number(test.get("token_loss")),
        "training loss, last tenth": _number(result.curve.final_loss),
        "training time": f"{result.seconds:.0f} s",
        "tokens a second": f"{result.tokens / result.seconds:,.0f}",
        "peak memory": f"{result.peak_memory / 2**20:,.0f} MiB",
        "merged = unmerged to": f"{merge.max_feature_difference:.1e} of {merge.max_feature:.0f}" if merge else "–",
    }
    for name, cell in rows.items():
        table.add_row(name, cell)
    console.print(table)
    print_files(result.folder, console)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
