"""Verbs, options, settings, files and messages in the documentation exist, and the site builds without a warning."""

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.core import TyperGroup

from afa_cli.app import app
from afa_cli.recipes import find_recipe
from afa_lora.settings import RecipeError, parse_yaml
from afa_lora.sft import load_recipe, parse_recipe
from tools.check_links import check_project
from tools.mkdocs_hooks import GENERATED, LINK, generate, recipe_keys, site_link, to_mathml

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTED = ("afa_lora", "afa_lora.sft", "afa_lora.data", "afa_lora.evaluation", "afa_lora.serving")
FENCE = re.compile(r"^```(?P<kind>\S*)(?P<title>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def verbs(group: TyperGroup, *path: str) -> Iterator[tuple[str, Any]]:
    """Every verb below a group: its words after `afa`, and its parser."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from verbs(command, *path, name)
        else:
            yield " ".join([*path, name]), command


VERBS = dict(verbs(typer.main.get_command(app)))


class Block(NamedTuple):
    """A fenced block."""

    page: str
    kind: str
    title: str
    text: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for match in FENCE.finditer(page.read_text(encoding="utf-8")):
            yield Block(page.name, match["kind"], match["title"], match["text"])


def spans(page: Path) -> list[str]:
    return SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def commands() -> list[str]:
    """Every line of a block without a language that calls `afa`, as what follows `afa`."""
    lines = [line for block in blocks() if not block.kind for line in block.text.splitlines()]
    found = [re.match(r"(?:afa|accelerate launch .*-m afa_cli) (.*)", line) for line in lines]
    return [match[1] for match in found if match]


def split(command: str) -> tuple[str, list[str]]:
    """The verb, of two words below a group such as `eval`, and the words after it, up to a redirection."""
    words = shlex.split(command, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    depth = 1 if words[0] in VERBS else 2
    return " ".join(words[:depth]), words[depth:]


def complaint(command: str) -> str | None:
    """What the console script would say against a command; ``None`` if it parses. Nothing is run."""
    verb, words = split(command)
    try:
        VERBS[verb].make_context(verb, words)
    except typer.BadParameter.__base__ as error:
        return str(error)
    return None


def overrides(command: str) -> list[str]:
    return [word for word in split(command)[1][1:] if "=" in word and not word.startswith("-")]


@pytest.mark.parametrize("command", commands())
def test_commands_name_verbs_and_options_that_exist(command: str) -> None:
    assert complaint(command) is None


@pytest.mark.parametrize(
    "command", ["sft", "sft recipe.yaml --dryrun", "export run --to onnx --out x", "recipes --copy"]
)
def test_a_command_that_does_not_parse_is_found(command: str) -> None:
    assert complaint(command)


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("sft ")])
def test_overrides_are_settings(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name = split(command)[1][0]
    recipe = load_recipe(find_recipe("quickstart" if name == "my_recipe.yaml" else name), overrides(command))
    settings = recipe.model_dump(mode="json")
    for key, value in (override.split("=", 1) for override in overrides(command)):
        assert reduce(getitem, key.split("."), settings) == parse_yaml(value, command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_inline_commands_name_verbs_and_options_that_exist(page: Path) -> None:
    for span in spans(page):
        command = span.removeprefix("afa ")
        if span != command and not any(verb.startswith(f"{command} ") for verb in VERBS):  # nor a group by itself
            verb, words = split(command)
            options = {option for parameter in VERBS[verb].params for option in parameter.opts}
            assert {word for word in words if word.startswith("-")} <= options, span


def test_yaml_blocks_are_recipes() -> None:
    found = [b for b in blocks() if b.kind == "yaml" and "five" not in b.title and parse_yaml(b.text, b.page)]
    assert found
    for block in found:
        parse_recipe(parse_yaml(block.text, block.page))


def test_the_five_mistakes_are_told_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = [block.text for block in blocks() if "five.yaml" in block.title]
    (shown,) = [block.text for block in blocks() if block.kind == "text" and "5 mistakes" in block.text]
    monkeypatch.chdir(tmp_path)
    Path("five.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(Path("five.yaml"))
    assert f"Error: {error.value}\n" == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_project_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b(?:recipes|src|tests|tools)/[\w./-]*\w", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_and_symbols_lead_somewhere() -> None:
    problems, _ = check_project(ROOT)
    assert [problem for problem in problems if problem.file.is_relative_to(ROOT / "docs")] == []


def sentences() -> str:
    """Every text in the sources, with … for what is filled in."""
    found = []
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests" / "serving").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


OF_OTHERS = {"KeyError: 'AFA_LORA'", "is greater than max_lora_rank"}  # PEFT's and vLLM's, in the symptoms


def test_messages_are_quoted_as_they_are() -> None:
    """Of the first column of the troubleshooting tables, and of the messages on the page about runs."""
    said = sentences()
    rows = [
        line
        for line in (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines()
        if line[0:2] == "| "
    ]
    quoted = [span for row in rows for span in SPAN.findall(row.split(" | ")[0])]
    table = (ROOT / "docs/runs.md").read_text(encoding="utf-8").partition("What refuses")[2].partition("## Sealed")[0]
    quoted += [span for row in table.splitlines() if row[0:2] == "| " for span in SPAN.findall(row) if " " in span]
    assert len(quoted) > 50
    wrong = [
        part
        for span in quoted
        if span not in OF_OTHERS
        for part in re.split(r"\s*…\s*", span.removeprefix("Error: "))
        if part not in said
    ]
    assert wrong == []


def test_the_keys_of_a_recipe_are_those_of_the_schema() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| ", recipe_keys(), flags=re.MULTILINE)
    assert ("method", "`full`, `lora`, `dora`, `afa-lora`, `afa-dora`", "`afa-lora`") in rows
    assert ("output", "path", "must be given") in rows
    assert ("quantization", "`4bit`, `8bit` or `null`", "`null`") in rows
    assert ("anneal_end", "number", "`0.3`") in rows
    assert ("task", "text", "must be given") in rows
    assert "### data, with source: hub" in recipe_keys()
    assert "`output_dir` by output" in recipe_keys()


def test_the_help_of_every_verb_is_shown() -> None:
    text = generate("command line")
    for name, verb in VERBS.items():
        section = text.partition(f"## afa {name}\n")[2].partition("\n## ")[0]
        for parameter in verb.params:
            assert (parameter.metavar or parameter.opts[0]) in section


def test_what_is_marked_is_generated() -> None:
    marks = [
        mark for page in PAGES for mark in re.findall(r"<!-- generated: (.+) -->", page.read_text(encoding="utf-8"))
    ]
    assert sorted(marks) == sorted(GENERATED)


@pytest.mark.parametrize(
    ("written", "on_the_site"),
    [
        ("[a](../PAPER.md#more)", "[a](project/paper.md#more)"),
        ("![a](method.png)", "![a](method.png)"),
        ("[a](../benchmarks/README.md)", "a"),
        ("[a](nowhere.md)", "[a](nowhere.md)"),
        ("[a](#here)", "[a](#here)"),
        ("[a](https://example.org)", "[a](https://example.org)"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(written: str, on_the_site: str) -> None:
    pages = {ROOT / "PAPER.md": "project/paper.md", ROOT / "docs/method.png": "method.png"}
    link = LINK.fullmatch(written)
    assert link
    assert site_link(link, ROOT / "docs/index.md", pages, "") == on_the_site


def test_equations_become_mathml() -> None:
    assert "<msub><mi>W</mi><mn>0</mn></msub>" in to_mathml("W_0 x\n")


@pytest.mark.parametrize("name", ["draw_schedules", "draw_method"])
def test_figures_are_drawn(name: str, tmp_path: Path) -> None:
    target = tmp_path / "figure.png"
    subprocess.run([sys.executable, str(ROOT / "tools" / f"{name}.py"), str(target)], check=True, capture_output=True)
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from the sources; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # Material's banner about a later mkdocs
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


@pytest.mark.slow
@pytest.mark.integration
class TestTheBuiltSite:
    def test_nothing_is_loaded_from_elsewhere(self, site: Path) -> None:
        for page in site.rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>", text) == []

    def test_equations_and_figures_are_there(self, site: Path) -> None:
        text = (site / "method/index.html").read_text(encoding="utf-8")
        assert text.count("<math ") == len([block for block in blocks() if block.kind == "math"]) == 6
        for figure in re.findall(r"<img[^>]*src=\"([^\"]+)\"", text):
            assert (site / "method" / figure).is_file()

    @pytest.mark.parametrize("package", DOCUMENTED)
    def test_every_public_function_and_class_is_described(self, site: Path, package: str) -> None:
        module = importlib.import_module(package)
        page = site / "reference" / package.removeprefix("afa_lora.") / "index.html"
        text = page.read_text(encoding="utf-8")
        described = [
            n for n in module.__all__ if inspect.isclass(getattr(module, n)) or inspect.isfunction(getattr(module, n))
        ]
        assert described
        assert [name for name in described if f'id="{package}.{name}"' not in text] == []

    def test_marks_are_filled_and_root_pages_are_pages(self, site: Path) -> None:
        assert "Usage: afa export" in (site / "reference/cli/index.html").read_text(encoding="utf-8")
        assert "anneal_end" in (site / "reference/recipe/index.html").read_text(encoding="utf-8")
        paper = (site / "project/paper/index.html").read_text(encoding="utf-8")
        assert "Where we deviate on purpose" in paper
        assert 'href="../project/paper/"' in (site / "method/index.html").read_text(encoding="utf-8")
