"""Draw docs/method.png, the README's figure: the placement A-σ-B, φ_β at several β, and β over training.

python tools/draw_method.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from afa_lora.core.activation import get_activation, phi
from afa_lora.core.schedule import Schedule

INK, FROZEN, TRAINED, ANNEALED = "#222222", "#c9d3df", "#f3c98b", "#e07a5f"


def draw_branch(axes: Axes) -> None:
    """W₀ beside the adapter branch B φ_β(A x)."""
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.axis("off")

    def box(x: float, y: float, width: float, text: str, colour: str, size: int = 12) -> None:
        patch = FancyBboxPatch((x - width / 2, y - 0.6), width, 1.2, boxstyle="round,pad=0.1", fc=colour, ec=INK)
        axes.add_patch(patch)
        axes.text(x, y, text, ha="center", va="center", fontsize=size)

    def arrow(*points: tuple[float, float]) -> None:
        *way, start, end = points
        for a, b in zip(way, [*way[1:], start], strict=False):
            axes.plot(*zip(a, b, strict=True), color=INK, lw=1.2)
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, lw=1.2, shrinkA=0))

    axes.text(5, 0.2, "x", ha="center", va="center", fontsize=13, style="italic")
    arrow((5, 0.6), (5, 1.1), (2.5, 1.1), (2.5, 4.2))
    arrow((5, 1.1), (7.5, 1.1), (7.5, 1.8))
    box(2.5, 5, 2.8, "$W_0$ (frozen)", FROZEN)
    box(7.5, 2.6, 2.4, "$A$   $(r × in)$", TRAINED)
    box(7.5, 4.9, 4.2, r"$\varphi_β = β\,σ(h) + (1-β)\,h$", ANNEALED, size=11)
    box(7.5, 7.2, 2.4, "$B$   $(out × r)$", TRAINED)
    arrow((7.5, 3.35), (7.5, 4.15))
    arrow((7.5, 5.65), (7.5, 6.45))
    arrow((2.5, 5.75), (2.5, 9.1), (4.55, 9.1))
    arrow((7.5, 7.95), (7.5, 9.1), (5.45, 9.1))
    axes.text(5, 9.1, "+", ha="center", va="center", fontsize=18)
    axes.text(6.5, 9.45, "× s", ha="center", va="center", fontsize=11)
    arrow((5, 9.4), (5, 10.1))
    axes.set_title("A-σ-B: the activation stands between A and B", fontsize=11, pad=14)


def draw_phi(axes: Axes) -> None:
    """φ_β of SiLU, from σ at β = 1 to the identity at β = 0."""
    h = torch.linspace(-4, 4, 200)
    for beta in (1.0, 0.75, 0.5, 0.25, 0.0):
        value = phi(h, get_activation("silu"), beta)
        axes.plot(h, value, color=ANNEALED, alpha=0.3 + 0.7 * beta, lw=1.8, label=f"β = {beta:g}")
    axes.set(xlabel="h", title="what it does to h (σ = SiLU)", xlim=(-4, 4))
    axes.legend(frameon=False, fontsize=8)


def draw_beta(axes: Axes) -> None:
    """β over training, linear over the first 30 %."""
    schedule, total = Schedule(), 1000
    steps = range(total + 1)
    axes.plot([s / total for s in steps], [schedule.beta(s, total) for s in steps], color=ANNEALED, lw=2)
    start, end = schedule.window(total)
    axes.axvspan(start / total, end / total, color=ANNEALED, alpha=0.12, lw=0)
    axes.text(0.65, 0.5, "an ordinary LoRA:\nmerge it, serve it", ha="center", va="center", fontsize=10)
    axes.set(xlabel="share of training", ylabel="β", xlim=(0, 1), ylim=(-0.03, 1.03), title="β over training")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "method.png"
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    branch, function, beta = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    draw_branch(branch)
    draw_phi(function)
    draw_beta(beta)
    for axes in (function, beta):
        axes.title.set_fontsize(11)
        axes.spines[["top", "right"]].set_visible(False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    print(f"written to {target}")


if __name__ == "__main__":
    main()
