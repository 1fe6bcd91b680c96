"""What MkDocs does for this site beyond Markdown: equations, pages from the repository's root, generated references.

- A ```` ```math ```` block becomes MathML, which browsers draw by themselves: no script, no font, no network.
- README.md, PAPER.md and the other files at the root are pages of the site as they stand.
- Links are written as they work in the repository; those that lead to a file that is no page become plain text.
- `<!-- generated: NAME -->` is replaced by what `GENERATED` makes: the keys of a recipe, the help of every verb.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

from afa_cli.app import app
from afa_lora.eagle.recipe import Recipe as EagleRecipe
from afa_lora.grpo.recipe import Recipe as GrpoRecipe
from afa_lora.settings import Arguments, Section
from afa_lora.sft.recipe import Recipe

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "project/overview.md": "README.md",
    "project/paper.md": "PAPER.md",
    "project/experiments.md": "EXPERIMENTS.md",
    "project/contributing.md": "CONTRIBUTING.md",
    "project/changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
FENCED = re.compile(r"(^```.*?^```[ ]*$)", re.MULTILINE | re.DOTALL)
HELP_WIDTH = 100  # columns


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the ```` ```math ```` block."""
    fences = {"custom_fences": [{"name": "math", "class": "math", "format": to_mathml}]}
    config.mdx_configs.setdefault("pymdownx.superfences", {}).update(fences)
    return config


def to_mathml(source: str, *args: Any, **kwargs: Any) -> str:
    """One equation, as `pymdownx.superfences` asks for it."""
    return f'<p style="overflow-x: auto">{latex2mathml.converter.convert(source.strip(), display="block")}</p>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make pages of the files at the repository's root."""
    for uri, name in ROOT_PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the marks, then turn the repository's links into the site's."""
    markdown = MARK.sub(lambda mark: generate(mark[1]), markdown)
    source = Path(str(page.file.abs_src_path))
    pages = {Path(str(file.abs_src_path)).resolve(): file.src_uri for file in files if file.abs_src_path}
    folder = os.path.dirname(page.file.src_uri)
    return "".join(
        part if FENCED.fullmatch(part) else LINK.sub(lambda link: site_link(link, source, pages, folder), part)
        for part in FENCED.split(markdown)
    )


def site_link(link: re.Match[str], source: Path, pages: dict[Path, str], folder: str) -> str:
    """A link of ``source`` as it leads to the same page of the site, or its text alone if that is no page."""
    image, text, target = link.groups()
    path, anchor, heading = target.partition("#")
    if not path or ":" in path:
        return link[0]
    resolved = (source.parent / path).resolve()
    if resolved in pages:
        return f"{image}[{text}]({os.path.relpath(pages[resolved], folder or '.')}{anchor}{heading})"
    return text if resolved.exists() else link[0]  # MkDocs complains about the latter


def generate(name: str) -> str:
    """The Markdown for a mark.

    Raises:
        PluginError: nothing of that name is generated.
    """
    if name not in GENERATED:
        raise PluginError(f"<!-- generated: {name} -->: only {', '.join(GENERATED)} are generated.")
    return GENERATED[name]()


def command_line() -> str:
    """The help of `afa` and of every verb, as the terminal shows it."""
    parts = [f"```text\n{_help()}\n```"]
    parts += [f"## afa {' '.join(verb)}\n\n```text\n{_help(*verb)}\n```" for verb in _verbs(app)]
    return "\n\n".join(parts)


def _verbs(level: typer.Typer, *path: str) -> Iterator[tuple[str, ...]]:
    for command in level.registered_commands:
        if command.callback:
            yield (*path, command.name or str(command.callback.__name__))
    for group in level.registered_groups:
        if group.typer_instance:
            yield from _verbs(group.typer_instance, *path, str(group.name))


def _help(*verb: str) -> str:
    result = CliRunner().invoke(app, [*verb, "--help"], prog_name="afa", terminal_width=HELP_WIDTH)
    if result.exit_code != 0:
        raise PluginError(f"afa {' '.join(verb)} --help failed: {result.output}")
    return result.output.strip()


def recipe_keys(recipe: type[Section] = Recipe) -> str:
    """Every key of a recipe, one table for each section."""
    schema = recipe.model_json_schema()
    tops: dict[str, Any] = {}
    parts: list[str] = []
    for name, key in schema["properties"].items():
        arguments = next((mark for mark in recipe.model_fields[name].metadata if isinstance(mark, Arguments)), None)
        if arguments is not None:
            parts += [f"### {name}", _sentence(key["description"]), _set_elsewhere(arguments)]
        elif "discriminator" in key:
            for value, reference in key["discriminator"]["mapping"].items():
                section = _resolve(schema, reference)
                parts += [f"### {name}, with source: {value}", _sentence(section["description"]), _table(section)]
        elif "$ref" in key or "$ref" in key.get("items", {}):
            section = _resolve(schema, key.get("$ref") or key["items"]["$ref"])
            parts += [f"### {name}", _sentence(section["description"]), _table(section)]
        else:
            tops[name] = key
    top = _table({"properties": tops, "required": schema["required"]})
    return "\n\n".join(["### Top level", top, *parts])


def _resolve(schema: dict[str, Any], reference: str) -> dict[str, Any]:
    section: dict[str, Any] = schema["$defs"][reference.rpartition("/")[2]]
    return section


def _table(section: dict[str, Any]) -> str:
    required = section.get("required", ())
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for name, key in section["properties"].items():
        default = "must be given" if name in required else f"`{_yaml(key['default'])}`" if "default" in key else "none"
        rows.append(f"| `{name}` | {_values(key)} | {default} | {_sentence(key.get('description', ''))} |")
    return "\n".join(rows)


KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
    "null": "`null`",
    "object": "keys with values",
    "array": "list",
}


def _values(key: dict[str, Any]) -> str:
    """What a key may hold, in words."""
    if "anyOf" in key:
        kinds = [_values(member) for member in key["anyOf"]]
        return " or ".join(kind for kind in kinds if not (kind == KINDS["integer"] and KINDS["number"] in kinds))
    if "enum" in key or "const" in key:
        return ", ".join(f"`{value}`" for value in key.get("enum", [key.get("const")]))
    return "path" if key.get("format") == "path" else KINDS[key["type"]]


def _set_elsewhere(arguments: Arguments) -> str:
    listed = "; ".join(f"`{key}` by {home}" for key, home in arguments.set_elsewhere.items())
    known = f"{len(arguments.keys)} keys, the arguments of `{arguments.name}`; names and types are checked."
    return f"{known} Set elsewhere: {listed}."


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    return text.replace("``", "`").replace("\n\n", " ").replace("\n", " ")


GENERATED: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "recipe keys": recipe_keys,
    "GRPO recipe keys": lambda: recipe_keys(GrpoRecipe),
    "EAGLE recipe keys": lambda: recipe_keys(EagleRecipe),
}
