"""Loss and β over training as one figure."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afa_lora.files import write_atomic

BETA = "afa/beta"
DOTS_PER_INCH = 150
# An SVG inside a page takes its colours from the page, whose style sheet knows light from dark. While it is drawn,
# these stand for the text, for the shade of an annealing window and for the lines.
INK, SHADE = "#0000ff", "#0000fe"
LINES = tuple(f"#0000{number:02x}" for number in range(16, 25))
CSS_COLOURS = {INK: "currentColor", SHADE: "var(--shade)"} | {c: f"var(--line-{i})" for i, c in enumerate(LINES)}
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1), (5, 1, 1, 1))  # in turn, once the colours are used up
LOSS_IN_NATS = "training loss (nats per token)"
DRAFT_LOSS = "training loss (features and tokens)"
SMOOTHED = 50  # a line of an SVG has no more bends than that


class Annealed:
    """A curve of any kind that has β.

    Attributes:
        beta: (optimizer step, β) pairs; empty if nothing was annealed.
    """

    beta: tuple[tuple[int, float], ...]

    @property
    def window(self) -> tuple[int, int] | None:
        """The first logged step and the first one with β = 0, or the last one; ``None`` if nothing was annealed."""
        if not any(value > 0 for _, value in self.beta):
            return None
        first, last = self.beta[0][0], self.beta[-1][0]
        return first, next((step for step, value in self.beta if value == 0), last)


@dataclass(frozen=True)
class Curve(Annealed):
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


def read_curve(name: str, log_history: Iterable[Mapping[str, float]]) -> Curve:
    """Read a curve out of ``trainer.state.log_history``."""
    logs = list(log_history)
    return Curve(
        name,
        tuple((int(entry["step"]), entry["loss"]) for entry in logs if "loss" in entry),
        tuple((int(entry["step"]), entry[BETA]) for entry in logs if BETA in entry and "loss" in entry),
    )


def plot_curves(curves: Sequence[Curve], path: Path, y_label: str = LOSS_IN_NATS) -> None:
    """Write a PNG with the losses above and, if anything was annealed, β below; annealing windows are shaded."""
    figure, panel = figure_over_beta(curves, y_label)
    for curve in curves:
        if not curve.loss:  # the training was shorter than train.logging_steps
            continue
        noisy = len(curve.loss) > 2 * SMOOTHED
        line = smoothed(curve.loss) if noisy else curve.loss
        (drawn,) = panel.plot(*zip(*line, strict=True), label=curve.name, linewidth=1.5)
        if noisy:  # the steps one by one behind their means
            panel.plot(*zip(*curve.loss, strict=True), color=drawn.get_color(), alpha=0.2, linewidth=0.6)
    save_figure(figure, path)


def figure_over_beta(curves: Sequence[Annealed], y_label: str) -> tuple[Figure, Axes]:
    """A figure with a panel to draw in and, if anything was annealed, β below it; annealing windows are shaded.

    Args:
        curves: whose β it is.
        y_label: of the empty panel.
    """
    annealed = [curve for curve in curves if curve.window is not None]
    figure = Figure(figsize=(7, 5 if annealed else 3.6), layout="constrained")
    heights = [3, 1] if annealed else [1]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for curve in annealed:
        panels[1].plot(*zip(*curve.beta, strict=True), color="black", linewidth=1.5)
    for start, end in {curve.window for curve in annealed if curve.window}:
        for panel in panels:
            panel.axvspan(start, end, color="0.92", zorder=0, label="β > 0" if panel is panels[0] else None)
    panels[0].set_ylabel(y_label)
    if annealed:
        panels[1].set(ylabel="β", ylim=(-0.05, 1.05))
    panels[-1].set_xlabel("optimizer step")
    return figure, panels[0]


def mean_curve(name: str, curves: Sequence[Curve]) -> Curve:
    """The mean over seeds at the steps that all of them logged; β is that of the first, being the same for all."""
    losses = [dict(curve.loss) for curve in curves]
    steps = [step for step, _ in curves[0].loss if all(step in loss for loss in losses)]
    means = tuple((step, sum(loss[step] for loss in losses) / len(losses)) for step in steps)
    return Curve(name, means, curves[0].beta)


def smoothed(points: Sequence[tuple[int, float]], bends: int = SMOOTHED) -> list[tuple[float, float]]:
    """The means of successive points, so many together that ``bends`` or fewer are left: (mean step, mean value)."""
    size = -(-len(points) // bends) or 1
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def loss_svg(curves: Sequence[Curve], styles: Sequence[int], y_label: str = LOSS_IN_NATS) -> str:
    """The losses as inline SVG, smoothed, each curve in the line style of its number; annealing windows are shaded."""
    return lines_svg([smoothed(curve.loss) for curve in curves], styles, curves, y_label)


def beta_svg(curves: Sequence[Annealed], styles: Sequence[int]) -> str:
    """β as inline SVG, in the same way."""
    return lines_svg([curve.beta for curve in curves], styles, curves, "β")


def line_style(number: int) -> tuple[str, tuple[float, ...]]:
    """The colour of a line, as the page's style sheet names it, and its dashes; different for 36 numbers."""
    colour, dashes = LINES[number % len(LINES)], DASHES[number // len(LINES) % len(DASHES)]
    return CSS_COLOURS[colour], dashes


def lines_svg(
    lines: Sequence[Sequence[tuple[float, float]]], styles: Sequence[int], curves: Sequence[Annealed], y_label: str
) -> str:
    """Lines over the optimizer steps as inline SVG; the annealing windows of their curves are shaded."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": y_label, "font.size": 11}):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for start, end in sorted({curve.window for curve in curves if curve.window}):
            axes.axvspan(start, end, color=SHADE, zorder=0, linewidth=0)
        for line, style in zip(lines, styles, strict=True):
            (drawn,) = axes.plot(*zip(*line, strict=True), color=LINES[style % len(LINES)], linewidth=1.6)
            if dashes := line_style(style)[1]:
                drawn.set_dashes(dashes)
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.tick_params(colors=INK)
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(INK)
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)  # the page's background is the figure's
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=metadata)
    return _inlined(content.getvalue())


def _inlined(svg: str) -> str:
    """An SVG without what only a file of its own needs, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # it would style the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # every figure has the same ones
    return re.sub("#0000[0-9a-f]{2}", lambda match: CSS_COLOURS[match[0]], svg)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:  # nothing is drawn where nothing was logged
            axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_atomic(path, content.getvalue())
