"""PAPER.md and the code's `# Eq. n` marks agree, in both directions."""

import re
from pathlib import Path

import pytest

from tools.check_links import symbols

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "PAPER.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`(src/[\w/]+\.py):([\w.]+)`", PAPER)))
MARKS = re.compile(r"# (Eq\. \d|Algorithm \d)")


def rows() -> dict[str, list[str]]:
    """Equation -> the files its row names."""
    found = {}
    for line in PAPER.splitlines():
        if match := re.match(r"\| (Eq\. \d|Algorithm \d) \|", line):
            found[match[1]] = re.findall(r"`(src/[\w/]+\.py):", line)
    return found


def marks() -> set[tuple[str, str]]:
    return {
        (mark, str(file.relative_to(ROOT)))
        for file in (ROOT / "src").rglob("*.py")
        for mark in MARKS.findall(file.read_text(encoding="utf-8"))
    }


def test_every_equation_has_a_row():
    assert list(rows()) == [f"Eq. {n}" for n in range(1, 7)] + ["Algorithm 1"]


@pytest.mark.parametrize(("file", "symbol"), REFERENCES)
def test_every_reference_names_a_symbol_that_exists(file, symbol):
    assert symbol in symbols(ROOT / file)


@pytest.mark.parametrize(("equation", "file"), sorted(marks()))
def test_every_mark_in_the_code_has_a_row(equation, file):
    assert equation in rows(), f"{file} is marked # {equation}, PAPER.md has no such row"


@pytest.mark.parametrize("equation", [e for e in rows() if e != "Eq. 6"])
def test_every_row_points_to_a_file_with_the_mark(equation):
    marked = {file for mark, file in marks() if mark == equation}
    assert marked & set(rows()[equation])
