"""β over training for each schedule (the paper's figure 2), as PNG and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.text import Text

from afa_lora.core.schedule import Schedule
from afa_lora.report.curves import save_figure
from afa_lora.report.terminal import draw_lines


def betas(schedule: Schedule, total_steps: int) -> list[float]:
    """β before each of the optimizer steps 0 … total_steps."""
    return [schedule.beta(step, total_steps) for step in range(total_steps + 1)]


def plot_schedules(schedules: Mapping[str, Schedule], total_steps: int, path: Path) -> None:
    """Write a PNG with one line per schedule, named by the mapping's keys."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, schedule in schedules.items():
        axes.plot(range(total_steps + 1), betas(schedule, total_steps), label=name, linewidth=1.5)
    axes.set(xlabel="optimizer step", ylabel="β", ylim=(-0.05, 1.05), xlim=(0, total_steps))
    save_figure(figure, path)


def draw_schedules(schedules: Mapping[str, Schedule], total_steps: int, width: int) -> Text:
    """The same for a terminal of ``width`` columns."""
    lines: dict[str, Sequence[float]] = {name: betas(schedule, total_steps) for name, schedule in schedules.items()}
    return draw_lines(lines, width=width, x_label=f"0 … {total_steps} optimizer steps", y_label="β")
