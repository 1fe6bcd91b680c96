"""The documentation's link check finds what leads nowhere, and nothing else."""

import subprocess
from pathlib import Path

import pytest

from tools.check_links import Problem, check_project, slug

MODULE = '''
"""A module."""
import torch
LIMIT: int = 3
if LIMIT:
    def branch() -> None: ...
class Layer:
    rank = 2
    def forward(self) -> None:
        inner = 1
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of one module and one page, to which the tests add a page of their own."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/module.py").write_text(MODULE)
    (tmp_path / "OTHER.md").write_text("# The β of a run\n\n## Twice\n\n## Twice\n\n```\n# not a heading\n```\n")
    return tmp_path


def problems(project: Path, text: str) -> list[Problem]:
    (project / "PAGE.md").write_text(text, encoding="utf-8")
    return check_project(project)[0]


@pytest.mark.parametrize(
    "text",
    [
        "[a](OTHER.md)",
        "[a](OTHER.md#the-β-of-a-run)",
        "[a](OTHER.md#twice-1)",
        "[a](/OTHER.md 'title')",
        "# Here\n[a](#here)",
        "[a](https://example.org/nothing.md) and [b](mailto:a@example.org)",
        "[a]: OTHER.md",
        '<a id="mark"></a>[a](#mark)',
        "`src/module.py:branch`, `src/module.py:Layer.forward`, `src/module.py:LIMIT`, `src/module.py:Layer.rank`",
        "`src/module.py`, `elsewhere/module.py`, `a/b`",
        "`[a](nowhere.md)`",
        "```\n[a](nowhere.md) `src/nowhere.py`\n```",
        "~~~~\n```\n[a](nowhere.md)\n~~~~",
    ],
)
def test_leads_somewhere(project: Path, text: str) -> None:
    assert problems(project, text) == []


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("[a](nowhere.md)", "nowhere.md", "no such file"),
        ("![figure](docs/figure.png)", "docs/figure.png", "no such file"),
        ('<img src="figure.png" width="600">', "figure.png", "no such file"),
        ("[a]: nowhere.md", "nowhere.md", "no such file"),
        ("[a](../outside.md)", "../outside.md", "leads out of the repository"),
        ("[a](OTHER.md#thrice)", "OTHER.md#thrice", "no heading #thrice in OTHER.md"),
        ("[a](OTHER.md#not-a-heading)", "OTHER.md#not-a-heading", "no heading #not-a-heading in OTHER.md"),
        ("`src/module.py:twig`", "src/module.py:twig", "src/module.py defines no twig"),
        ("`src/module.py:Layer.inner`", "src/module.py:Layer.inner", "src/module.py defines no Layer.inner"),
        ("`src/nowhere.py:branch`", "src/nowhere.py:branch", "no such file"),
        ("`src/nowhere.py`", "src/nowhere.py", "no such path"),
    ],
)
def test_leads_nowhere(project: Path, text: str, reference: str, reason: str) -> None:
    page = project / "PAGE.md"
    assert problems(project, f"\n{text}\n") == [Problem(page, 2, reference, reason)]


def test_ignored_files_are_not_read(project: Path) -> None:
    (project / ".gitignore").write_text("PAGE.md\n")
    assert problems(project, "[a](nowhere.md)") == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Quick start", "quick-start"),
        ("Does it *merge*? Yes!", "does-it-merge-yes"),
        ("`afa sft`, first form", "afa-sft-first-form"),
        ("A-σ-B & β(t)", "a-σ-b--βt"),
        ("See [this](there.md)", "see-this"),
    ],
)
def test_slug(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor
