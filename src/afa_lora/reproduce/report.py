"""From folders to the report: one HTML page, Markdown tables, all numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afa_lora.report.curves import DRAFT_LOSS, LOSS_IN_NATS, Curve, beta_svg, lines_svg, loss_svg, mean_curve, smoothed
from afa_lora.report.page import Figure, render_page
from afa_lora.report.rewards import RewardCurve
from afa_lora.report.tables import markdown_report
from afa_lora.reproduce.families import WITHOUT_ADAPTER
from afa_lora.reproduce.numbers import study_numbers
from afa_lora.reproduce.rewards import mean_reward_curve
from afa_lora.reproduce.study import Arm, Study, read_findings

LOSS_LABELS = {"sft": LOSS_IN_NATS, "eagle": DRAFT_LOSS}
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
    """Read studies (`afa reproduce`), runs (`afa sft`, `afa grpo`) and evaluations (`afa eval`), as far as they have
    come.

    Raises:
        StudyError: a folder cannot be reported on, or not in one table with the others.
    """
    found = read_findings(folders)
    numbers = {"studies": [study_numbers(study) for study in found.studies], "harness": dict(found.harness)}
    page = render_page(numbers, [draw_figures(study) for study in found.studies])
    return Report(numbers, page, markdown_report(numbers))


def draw_figures(study: Study) -> list[Figure]:
    """The losses, or for GRPO the rewards, of each family beside full fine-tuning, and β."""
    curves = {arm.name: curve for arm in study.arms if arm.trainings and (curve := _curve(arm))}
    trained = [arm for arm in study.arms if arm.name in curves]
    what = "mean reward of the sampled completions" if study.workflow == "grpo" else "training loss"
    label = LOSS_LABELS.get(study.workflow, "")
    figures = []
    for family in dict.fromkeys(arm.family for arm in trained if arm.family not in WITHOUT_ADAPTER):
        group = [arm for arm in trained if arm.family in (family, *WITHOUT_ADAPTER)]
        name = f"{FAMILIES[family]}: {what}" if family else what.capitalize()
        figures.append(_training_figure(name, group, curves, label))
    if not figures and trained:
        figures.append(_training_figure(what.capitalize(), trained, curves, label))
    annealed = [curve for curve in curves.values() if curve.window]
    return [*figures, _beta_figure(annealed)] if annealed else figures


def _training_figure(name: str, arms: Sequence[Arm], curves: Mapping[str, Curve | RewardCurve], label: str) -> Figure:
    drawn = [curves[arm.name] for arm in arms]
    mean = ", the mean over the seeds" if any(len(arm.trainings) > 1 for arm in arms) else ""
    caption = f"{name}{mean}, smoothed."
    if any(curve.window for curve in drawn):
        caption += " Shaded: the steps with β\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}0."
    legend = tuple((curve.name, style) for style, curve in enumerate(drawn))
    return Figure(caption, _training_svg(drawn, label), legend)


def _training_svg(curves: Sequence[Curve | RewardCurve], label: str) -> str:
    losses = [curve for curve in curves if isinstance(curve, Curve)]
    if losses:
        return loss_svg(losses, range(len(losses)), label)
    rewards = [smoothed(curve.reward) for curve in curves if isinstance(curve, RewardCurve)]
    return lines_svg(rewards, range(len(rewards)), curves, "mean reward")


def _beta_figure(curves: Sequence[Curve | RewardCurve]) -> Figure:
    """One line for each course of β, named by the arms that share it."""
    shared: dict[tuple[tuple[int, float], ...], list[Curve | RewardCurve]] = {}
    for curve in curves:
        shared.setdefault(curve.beta, []).append(curve)
    lines = [group[0] for group in shared.values()]
    names = [", ".join(curve.name for curve in group) for group in shared.values()]
    if len(lines) == 1 and len(curves) > 1:
        names = [f"all {len(curves)} annealed arms"]
    styles = range(2, 2 + len(lines))
    legend = tuple(zip(names, styles, strict=True))
    return Figure("β, the weight of the activation, over the training.", beta_svg(lines, styles), legend)


def _curve(arm: Arm) -> Curve | RewardCurve | None:
    """The mean over the seeds of what a figure shows; ``None`` if nothing was logged."""
    rewards = [training.rewards.curve for training in arm.trainings if training.rewards]
    if rewards:
        curve = mean_reward_curve(arm.name, rewards)
        return curve if curve.reward else None
    loss = mean_curve(arm.name, [training.curve for training in arm.trainings])
    return loss if loss.loss else None
