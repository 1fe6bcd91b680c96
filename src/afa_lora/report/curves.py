"""Loss and β over training as one figure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from afa_lora.files import write_atomic

BETA = "afa/beta"
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Curve:
    """What one training logged.

    Attributes:
        name: for the legend.
        loss: (optimizer step, training loss in nats per token) pairs.
        beta: (optimizer step, β) pairs; empty if nothing was annealed.
    """

    name: str
    loss: tuple[tuple[int, float], ...]
    beta: tuple[tuple[int, float], ...]

    @property
    def final_loss(self) -> float | None:
        """The mean of the last tenth of the logged losses, at least of one; ``None`` if none was logged."""
        last = self.loss[-max(1, len(self.loss) // 10) :]
        return sum(value for _, value in last) / len(last) if last else None

    @property
    def window(self) -> tuple[int, int] | None:
        """The first logged step and the first one with β = 0, or the last one; ``None`` if nothing was annealed."""
        if not any(value > 0 for _, value in self.beta):
            return None
        first, last = self.beta[0][0], self.beta[-1][0]
        return first, next((step for step, value in self.beta if value == 0), last)


def read_curve(name: str, log_history: Iterable[Mapping[str, float]]) -> Curve:
    """Read a curve out of ``trainer.state.log_history``."""
    logs = list(log_history)
    return Curve(
        name,
        tuple((int(entry["step"]), entry["loss"]) for entry in logs if "loss" in entry),
        tuple((int(entry["step"]), entry[BETA]) for entry in logs if BETA in entry and "loss" in entry),
    )


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG with the losses above and, if anything was annealed, β below; annealing windows are shaded."""
    annealed = [curve for curve in curves if curve.window is not None]
    figure = Figure(figsize=(7, 5 if annealed else 3.6), layout="constrained")
    heights = [3, 1] if annealed else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for curve in curves:
        panels[0].plot(*zip(*curve.loss, strict=True), label=curve.name, linewidth=1.5)
    for curve in annealed:
        panels[1].plot(*zip(*curve.beta, strict=True), color="black", linewidth=1.5, label=curve.name)
    for start, end in {curve.window for curve in annealed if curve.window}:
        for panel in panels:
            panel.axvspan(start, end, color="0.92", zorder=0, label="β > 0" if panel is panels[0] else None)
    panels[0].set_ylabel("training loss (nats per token)")
    if panels[0].get_legend_handles_labels()[0]:  # nothing is drawn where nothing was logged
        panels[0].legend(frameon=False)
    if annealed:
        panels[1].set(ylabel="β", ylim=(-0.05, 1.05))
    panels[-1].set_xlabel("optimizer step")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_atomic(path, content.getvalue())
