"""The verb ``afa schedule``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afa_cli.errors import writing
from afa_cli.quiet import load_quietly


def schedule(
    kind: Annotated[list[str] | None, typer.Option("--kind", help="A schedule; repeatable. All unless given.")] = None,
    start: Annotated[str, typer.Option("--start", help="Until when β is 1: 0.1 is a share, 100 a step.")] = "0.0",
    end: Annotated[str, typer.Option("--end", help="From when β is 0: 0.3 is a share, 300 a step.")] = "0.3",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of the training.")] = 1000,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("schedule.png"),
) -> None:
    """Draw β over a training, here and as PNG.

    \b
    Examples:
      afa schedule
      afa schedule --kind linear --kind cosine --start 100 --end 0.6 --steps 2000 --out beta.png
    """
    load_quietly()
    from rich.console import Console

    from afa_lora.core.schedule import SCHEDULES, Schedule
    from afa_lora.report.schedules import draw_schedules, plot_schedules

    schedules = {name: Schedule(name, _bound("--start", start), _bound("--end", end)) for name in kind or SCHEDULES}
    console = Console()
    console.print(draw_schedules(schedules, steps, min(console.width, 100)))
    with writing("--out", out):
        plot_schedules(schedules, steps, out)
    typer.echo(f"The figure is in {out}.")


def _bound(option: str, text: str) -> int | float:
    """Read a bound of the annealing window: digits alone are optimizer steps, a decimal number a share of training."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no number.", param_hint=option) from error
