"""From folders to the report: one HTML page, Markdown tables, all numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_lora.report.curves import Curve, beta_svg, loss_svg, mean_curve
from afa_lora.report.page import Figure, render_page
from afa_lora.report.tables import markdown_report
from afa_lora.reproduce.numbers import study_numbers
from afa_lora.reproduce.study import Arm, Study, read_findings

FAMILIES = {"lora": "LoRA", "dora": "DoRA"}


@dataclass(frozen=True)
class Report:
    """A report in its forms.

    Attributes:
        numbers: all numbers: ``studies``, a list with what `study_numbers` gives for each, and ``harness``, the results
            of lm-evaluation-harness by the runs' names, as it gave them.
        page: one self-contained HTML page.
        markdown: the tables, with the outcome above them.
    """

    numbers: dict[str, Any]
    page: str
    markdown: str

    @property
    def json(self) -> str:
        """The numbers."""
        return json.dumps(self.numbers, indent=2, ensure_ascii=False) + "\n"


def make_report(folders: Sequence[Path]) -> Report:
    """Read studies (`afa reproduce`), runs (`afa sft`) and evaluations (`afa eval`), as far as they have come.

    Raises:
        StudyError: a folder cannot be reported on, or not in one table with the others.
    """
    found = read_findings(folders)
    numbers = {"studies": [study_numbers(study) for study in found.studies], "harness": dict(found.harness)}
    page = render_page(numbers, [draw_figures(study) for study in found.studies])
    return Report(numbers, page, markdown_report(numbers))


def draw_figures(study: Study) -> list[Figure]:
    """The losses of each family beside full fine-tuning, and β."""
    trained = [arm for arm in study.arms if arm.trainings and _curve(arm).loss]
    figures = []
    for family in dict.fromkeys(arm.family for arm in trained if arm.family != "full"):
        group = [arm for arm in trained if arm.family in (family, "full")]
        name = f"{FAMILIES[family]}: training loss" if family else "Training loss"
        figures.append(_loss_figure(name, group))
    if not figures and trained:
        figures.append(_loss_figure("Training loss", trained))
    annealed = [curve for curve in map(_curve, trained) if curve.window]
    return [*figures, _beta_figure(annealed)] if annealed else figures


def _loss_figure(name: str, arms: Sequence[Arm]) -> Figure:
    curves = [_curve(arm) for arm in arms]
    mean = ", the mean over the seeds" if any(len(arm.trainings) > 1 for arm in arms) else ""
    caption = f"{name}{mean}, smoothed."
    if any(curve.window for curve in curves):
        caption += " Shaded: the steps with β\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}0."
    legend = tuple((curve.name, style) for style, curve in enumerate(curves))
    return Figure(caption, loss_svg(curves, range(len(curves))), legend)


def _beta_figure(curves: Sequence[Curve]) -> Figure:
    """One line for each course of β, named by the arms that share it."""
    shared: dict[tuple[tuple[int, float], ...], list[Curve]] = {}
    for curve in curves:
        shared.setdefault(curve.beta, []).append(curve)
    lines = [group[0] for group in shared.values()]
    names = [", ".join(curve.name for curve in group) for group in shared.values()]
    if len(lines) == 1 and len(curves) > 1:
        names = [f"all {len(curves)} annealed arms"]
    styles = range(2, 2 + len(lines))
    legend = tuple(zip(names, styles, strict=True))
    return Figure("β, the weight of the activation, over the training.", beta_svg(lines, styles), legend)


def _curve(arm: Arm) -> Curve:
    return mean_curve(arm.name, [training.curve for training in arm.trainings])
