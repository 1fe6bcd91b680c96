"""The page needs nothing else, runs nothing, and shows every name as text."""

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from afa_lora.report.curves import DASHES, LINES, Curve, beta_svg, line_style, loss_svg, mean_curve, smoothed
from afa_lora.report.formats import accuracy_interval, duration, gap, p_value, points, state
from afa_lora.report.page import split_settings
from afa_lora.report.tables import terminal_table
from afa_lora.reproduce.report import make_report
from tests.reproduce.studies import (
    ARMS,
    arm,
    write_evaluation,
    write_grpo_study,
    write_harness,
    write_json,
    write_run,
    write_study,
)

HOSTILE = '<script>alert(1)</script>" onload="x" {{ 7 * 7 }} | `x` </table> $y$ &amp;'
VOID = {"meta", "br", "path", "use", "rect", "line", "ellipse"}


class Page(HTMLParser):
    """What a browser would load, run and show; an element that is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.links += [value or "" for name, value in attributes if name.split(":")[-1] in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        elif tag == "br":
            self.text += " "

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything on it: studies, an arm that is not finished, runs, the harness, hostile names."""
    folder = tmp_path_factory.mktemp("page")
    arms = [*ARMS, arm(HOSTILE, "afa-lora", slug="hostile", settings={HOSTILE: HOSTILE}), arm("AFA late", "afa-lora")]
    shares = {"Full": 0.6, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.45, HOSTILE: 0.5}
    texts = {"title": HOSTILE, "paper": HOSTILE, "deviations": [HOSTILE]}
    write_study(folder / "study", shares, arms=arms, items=10, **texts)
    write_run(folder / "run", "afa-lora")
    write_evaluation(folder / "evaluation<b>", 0.4, items=10, prompt="chat")
    write_harness(folder / "harness", 0.5)
    write_grpo_study(folder / "rewards", {"Full": 0.8, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.5})
    return make_report([folder / name for name in ("study", "rewards", "run", "evaluation<b>", "harness")]).page


def test_no_request_leaves_the_page(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert page.links  # the ticks of the figures
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert "@import" not in html
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in html


def test_nothing_on_the_page_runs(html: str) -> None:
    page = Page(html)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "javascript:" not in html


def test_hostile_names_are_shown_as_they_are(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert text.count(HOSTILE) >= 8  # title, heading, paper, deviation, tables, legend, settings
    assert "<script>" not in html


def test_markdown_keeps_its_cells_whatever_the_names(tmp_path: Path) -> None:
    """The message of a failure is of several lines, and may hold what a model's or a file's name is."""
    arms = [*ARMS, arm(HOSTILE, "afa-lora", slug="hostile")]
    write_study(tmp_path, {"LoRA": 0.4, HOSTILE: 0.5}, arms=arms, items=10)
    shutil.rmtree(tmp_path / "LoRA" / "seed-1" / "evaluation")
    for place in ("Full/seed-0", "LoRA/seed-1"):
        write_json(tmp_path / place / "failure.json", {"time": 0, "message": f"first line\n\n| {HOSTILE}\n- last line"})
    report = make_report([tmp_path])
    assert Page(report.page).text.count(f"seed 1: failed: first line\n\n| {HOSTILE}\n- last line") == 1
    assert "<script" not in report.page
    markdown = report.markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(arms)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert "<script" not in markdown
    assert "</table" not in markdown
    full, lora = rows[2:4]
    for row in (full, lora):
        assert "failed: first line \\| &lt;script>" in row
        assert "- last line" in row
    assert "seed 1: failed" in lora  # beside the average of the seed that is there


def test_every_part_is_on_the_page(html: str) -> None:
    text = " ".join(Page(html).text.split())
    for part in (
        "Outcome",
        "ARC-C 10 items",
        "paper 85.95",
        "Gap closed",
        "Shaded: the steps with β > 0",
        "β, the weight of the activation",
        "Tokens/s",
        "Peak memory, MiB",
        "What differs from the paper",
        "Settings",
        "git commit",
        "fingerprint aaaaaaaaaaaaaaaa",
        "not started",
        "lm-evaluation-harness",
        "Rewards × 100",
        "Validation 200 items",
        "3B validation",
        "3B 40.0 %",
        "LoRA: mean reward of the sampled completions, smoothed.",
    ):
        assert part in text


def test_tables_scroll_by_themselves(html: str) -> None:
    """A table outside of a scroll container would widen the page on a telephone."""
    tables, scrolled = html.count("<table>"), len(re.findall(r'<div class="scroll"[^>]*>\s*<table>', html))
    assert tables == scrolled > 4
    assert 'name="viewport" content="width=device-width' in html


CURVES = [
    Curve("LoRA", tuple((step, 3.0 / step) for step in range(1, 201)), ()),
    Curve(
        "AFA",
        tuple((step, 2.0 / step) for step in range(1, 201)),
        tuple((s, max(0, 1 - s / 60)) for s in range(1, 201)),
    ),
]


def test_figures_take_their_colours_and_fonts_from_the_page() -> None:
    svg = loss_svg(CURVES, range(2))
    assert "var(--line-0)" in svg
    assert "var(--line-1)" in svg
    assert "var(--shade)" in svg
    assert "currentColor" in svg
    assert not re.findall(r"(?:fill|stroke): #", svg)
    assert "<style" not in svg
    assert " id=" not in re.sub(r"<(?:path|clipPath) id=", "", svg)
    assert "training loss" in svg
    assert svg == loss_svg(CURVES, range(2))


def test_the_annealing_window_is_where_it_should_be() -> None:
    """β is 0 from step 60 of 200 on: the shade ends at 29.6 % of the way from the first step to the last."""
    svg = beta_svg(CURVES[1:], [2])
    paths = dict(re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*(var\(--shade\)|var\(--line-2\))', svg))
    xs = {colour: [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)] for path, colour in paths.items()}
    line, shade = xs["var(--line-2)"], xs["var(--shade)"]
    assert (max(shade) - line[0]) / (line[-1] - line[0]) == pytest.approx(59 / 199, abs=0.005)
    assert min(shade) == pytest.approx(line[0], abs=0.5)


def test_no_shade_without_annealing() -> None:
    assert "var(--shade)" not in loss_svg(CURVES[:1], [0])


def test_line_styles_are_different() -> None:
    assert len({line_style(number) for number in range(len(LINES) * len(DASHES))}) == 36
    many = [Curve(str(n), ((1, 2.0), (2, 1.0 + n)), ()) for n in range(12)]
    assert loss_svg(many, range(12)).count("stroke-dasharray") >= 3


def test_smoothing_keeps_the_mean_and_short_lines() -> None:
    points_ = [(step, float(step)) for step in range(1, 401)]
    short = smoothed(points_)
    assert len(short) == 50
    assert sum(y for _, y in short) / 50 == pytest.approx(200.5)
    assert smoothed(points_[:10]) == points_[:10]
    assert smoothed([]) == []


def test_the_mean_curve_is_over_the_steps_that_all_have() -> None:
    one, two = Curve("a", ((1, 1.0), (2, 3.0)), ((1, 0.5),)), Curve("b", ((2, 5.0), (3, 1.0)), ())
    assert mean_curve("m", [one, two]) == Curve("m", ((2, 4.0),), ((1, 0.5),))


def test_settings_are_split_into_shared_ones_and_the_others() -> None:
    arms: list[dict[str, Any]] = [
        {"slug": "a", "settings": {"train": {"lr": 1e-4, "epochs": 3}, "r": None}},
        {"slug": "b", "settings": {"train": {"lr": 2e-4, "epochs": 3}, "targets": ["q", "k"]}},
    ]
    shared, own = split_settings(arms)
    assert shared == {"train.epochs": "3"}
    assert own == {"train.lr": {"a": "0.0001", "b": "0.0002"}, "targets": {"a": "–", "b": '["q", "k"]'}}


def test_numbers_are_written_for_people() -> None:
    assert (points(0.0123), points(-0.004)) == ("+1.23", "−0.40")
    assert (p_value(0.04321), p_value(0.0001)) == ("= 0.043", "< 0.001")
    assert (duration(45), duration(720), duration(3 * 3600)) == ("45 s", "12 min", "3.0 h")
    value = {"mean": 0.4, "interval_95": (0.35, 0.46), "over": "items"}
    assert accuracy_interval(value) == "35.0 to 46.0"
    assert accuracy_interval({**value, "over": "seeds"}, 2) == "± 5.50"
    assert accuracy_interval({**value, "interval_95": None}) == ""
    closed = {"seeds": [0], "missing_seeds": []}
    assert (
        gap({"gap_closed": {**closed, "value": 0.393, "interval_95": (-0.1, 0.8), "reason": None}})
        == "39 % (−10 to 80)"
    )
    assert gap({"gap_closed": {**closed, "value": None, "interval_95": None, "reason": "x"}}) == "no clear gap"


def test_states_are_told_by_seed_where_they_differ() -> None:
    late = [{"seed": 0, "status": "not started"}, {"seed": 1, "status": "not started"}]
    assert state({"seeds": [], "unfinished": late}) == "not started"
    assert state({"seeds": [2], "unfinished": late}) == "seeds 0, 1: not started"
    two = [late[0], {"seed": 1, "status": "not evaluated"}]
    assert state({"seeds": [], "unfinished": two}) == "seed 0: not started; seed 1: not evaluated"
    assert state({"seeds": [0], "unfinished": []}) == ""
    failed = [late[0], {"seed": 1, "status": "failed: CUDA out of memory: tried"}]
    assert (
        state({"seeds": [], "unfinished": failed}) == "seed 0: not started; seed 1: failed: CUDA out of memory: tried"
    )
    assert state({"seeds": [], "unfinished": failed}, messages=False) == "seed 0: not started; seed 1: failed"


def test_the_terminals_table_of_a_partly_finished_study_fits_80_columns(tmp_path: Path) -> None:
    write_study(tmp_path, {"Full": 0.6, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.5}, items=10)
    shutil.rmtree(tmp_path / ARMS[2]["slug"] / "seed-1" / "evaluation")
    write_json(tmp_path / ARMS[2]["slug"] / "seed-1" / "failure.json", {"time": 0, "message": "word " * 100})
    (study,) = make_report([tmp_path]).numbers["studies"]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(study))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 16
    text = " ".join(" ".join(lines).split())
    assert "…" not in text
    assert "word" not in text
    for head in ("average", "interval", "paper", "against", "gap closed", "not finished"):
        assert all(word in text for word in head.split())
