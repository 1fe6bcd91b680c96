"""One HTML page with everything in it: no request leaves it, and nothing in it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from afa_lora.report import accepted_tables, formats, reward_tables, tables
from afa_lora.report.curves import line_style

PADDING = 0.04  # of an interval plot's width, on both sides


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        caption: below it.
        svg: inline SVG of `afa_lora.report.curves`.
        legend: the names of the lines and the numbers of their styles.
    """

    caption: str
    svg: str
    legend: tuple[tuple[str, int], ...]


def render_page(report: Mapping[str, Any], figures: Sequence[Sequence[Figure]]) -> str:
    """The page as HTML.

    Args:
        report: the numbers of `afa_lora.reproduce.report.make_report`.
        figures: those of each study.
    """
    environment = Environment(
        loader=PackageLoader("afa_lora.report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(module, name) for module, names in FILTERS.items() for name in names}
    environment.filters |= {"svg": Markup, "words": _words}
    sections = [
        {
            "numbers": entry,
            "figures": drawn,
            "plot": _interval_plot(entry["arms"], math.inf if tables.by_accepted(entry) else 1.0),
            "settings": split_settings(entry["arms"]),
            "legend": tables.legend(entry),
            "rewards": tables.by_rewards(entry),
            "accepted": accepted_tables.accepted_names(entry) if tables.by_accepted(entry) else [],
            "drafts": tables.by_accepted(entry),
            "columns": list(dict.fromkeys(column for arm in entry["arms"] for column in arm["paper"])),
        }
        for entry, drawn in zip(report["studies"], figures, strict=True)
    ]
    harness = {"heads": tables.HARNESS_HEADS, "rows": tables.harness_rows(report["harness"])}
    page = environment.get_template("page.html.jinja")
    return page.render(sections=sections, harness=harness, line=_line, nothing=formats.NOTHING)


FILTERS = {
    formats: (
        "accuracy",
        "accuracy_interval",
        "duration",
        "gap",
        "mebibytes",
        "on_seeds",
        "p_value",
        "paper_gap",
        "paper_value",
        "points",
        "points_interval",
        "share",
        "state",
        "unit_of",
    ),
    accepted_tables: ("accepted", "accepted_cell", "accepted_difference", "accepted_interval", "accepted_legend"),
    reward_tables: ("equal_groups", "training_gap", "training_interval", "training_reward"),
}


def split_settings(arms: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The settings that all arms share, and for each other dotted key its value in each arm (by slug)."""
    flat = {arm["slug"]: dict(_flat(arm["settings"])) for arm in arms}
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    values = {key: {slug: settings.get(key, formats.NOTHING) for slug, settings in flat.items()} for key in keys}
    shared = {key: next(iter(row.values())) for key, row in values.items() if len(set(row.values())) == 1}
    return shared, {key: row for key, row in values.items() if key not in shared}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            pairs.append((f"{prefix}{key}", text))
    return pairs


def _interval_plot(arms: Sequence[Mapping[str, Any]], most: float) -> dict[str, tuple[float, float, float]]:
    """For each slug where low bound, mean and high bound lie on an axis that holds all intervals, in percent of it.

    No value is larger than ``most``.
    """
    averages = {arm["slug"]: arm["accuracy"]["average"] for arm in arms if arm["accuracy"]}
    bounds = {slug: value["interval_95"] or [value["mean"]] * 2 for slug, value in averages.items()}
    low = min((max(0.0, bound[0]) for bound in bounds.values()), default=0.0)
    high = max((min(most, bound[1]) for bound in bounds.values()), default=1.0)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        inside = min(max((value - low) / width, 0.0), 1.0)
        return round(100 * (PADDING + (1 - 2 * PADDING) * inside), 2)

    return {
        slug: (place(bounds[slug][0]), place(value["mean"]), place(bounds[slug][1])) for slug, value in averages.items()
    }


def _words(text: str) -> Markup:
    """The text, escaped, with no line break after a hyphen or before a percent sign: σ-A-B is one word."""
    parts = text.replace(" %", "\N{NO-BREAK SPACE}%").split(" ")
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(p) if "-" in p else escape(p) for p in parts)


def _line(number: int) -> Markup:
    """A piece of a line, for a legend."""
    colour, dashes = line_style(number)
    dash = " ".join(f"{2 * part:g}" for part in dashes)
    return Markup(
        '<svg class="key" viewBox="0 0 28 8" aria-hidden="true">'
        '<line x1="0" y1="4" x2="28" y2="4" style="stroke:{};stroke-dasharray:{}"/></svg>'
    ).format(colour, dash or "none")
