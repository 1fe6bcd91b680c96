"""The verb ``afa report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afa_cli.errors import writing
from afa_cli.quiet import load_quietly


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of afa reproduce, of runs of afa sft or afa grpo, or of evaluations of afa eval."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown too.")] = None,
    numbers: Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON too.")] = None,
) -> None:
    """Report on studies, runs and evaluations in one page that needs nothing else.

    Each study is a table with intervals, paired tests and the gap closed; all other runs and evaluations share one.
    What is not finished is listed as such.

    \b
    Examples:
      afa report runs/table1
      afa report runs/table1 --out table1.html --markdown table1.md --json table1.json
      afa report runs/a runs/b
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.files import write_atomic
    from afa_lora.report.tables import terminal_harness_table, terminal_table
    from afa_lora.reproduce.report import make_report

    made = make_report(runs)
    for option, path, content in (
        ("--out", out, made.page),
        ("--markdown", markdown, made.markdown),
        ("--json", numbers, made.json),
    ):
        if path is not None:
            with writing(option, path):
                write_atomic(path, content)
    console = Console()
    for study in made.numbers["studies"]:
        console.print(terminal_table(study))
        typer.echo("\n".join(study["outcome"]))
    if made.numbers["harness"]:
        console.print(terminal_harness_table(made.numbers["harness"]))
    typer.echo("\n".join(f"Written to {path}." for path in (out, markdown, numbers) if path))
