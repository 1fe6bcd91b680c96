"""Draw docs/schedules.png: β over training as the paper anneals it (its figure 2), and the other schedules.

python tools/draw_schedules.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afa_lora.core.schedule import SCHEDULES, Schedule
from afa_lora.report.curves import save_figure
from afa_lora.report.schedules import betas

STEPS = 1000
ANNEALED, GUIDE = "#e07a5f", "#777777"


def draw_paper(axes: Axes) -> None:
    """Eq. 5 with the default window: β(t) from t_start to t_end, and what the adapter is in each part."""
    schedule = Schedule("linear", 0.0, 0.3)
    _, end = schedule.window(STEPS)
    axes.plot(range(STEPS + 1), betas(schedule, STEPS), color=ANNEALED, lw=2)
    axes.axvspan(0, end, color=ANNEALED, alpha=0.12, lw=0)
    axes.axvline(end, color=GUIDE, lw=1, ls=":")
    axes.set_xticks([0, end, STEPS], ["$t_{start}$ = 0", "$t_{end}$ = 0.3 T", "T"])
    axes.text(1.05 * end, 0.9, "← φ is not linear: φ = β σ(h) + (1 − β) h", va="center", fontsize=9)
    axes.text(1.05 * end, 0.12, "φ is the identity: the adapter is a LoRA", va="center", fontsize=9)
    axes.set(ylabel="β(t)", title="the paper's schedule")


def draw_kinds(axes: Axes) -> None:
    """Every schedule over the same window."""
    for kind in SCHEDULES:
        axes.plot(range(STEPS + 1), betas(Schedule(kind, 0.1, 0.6), STEPS), label=kind, lw=1.8)
    axes.set_xticks([0, 0.1 * STEPS, 0.6 * STEPS, STEPS], ["0", "0.1 T", "0.6 T", "T"])
    axes.set(title="all five, from anneal_start 0.1 to anneal_end 0.6")
    axes.legend(frameon=False, fontsize=9)


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "schedules.png"
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    paper, kinds = figure.subplots(1, 2)
    draw_paper(paper)
    draw_kinds(kinds)
    for axes in (paper, kinds):
        axes.set(xlim=(0, STEPS), ylim=(-0.03, 1.05), xlabel="optimizer step t")
        axes.title.set_fontsize(11)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, target)
    print(f"written to {target}")


if __name__ == "__main__":
    main()
