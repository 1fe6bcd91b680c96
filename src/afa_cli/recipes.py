"""The verb ``afa recipes``, and where the recipes that come with the package lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from afa_cli.errors import NoRecipeError, writing
from afa_cli.quiet import load_quietly

WORKFLOWS = ("sft", "grpo", "eagle")  # the first one's recipes are known by their bare names
VERBS = {"eagle": "eagle train"}  # where the verb that takes a recipe is not the workflow's name


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to print. All are listed unless one is given.")] = None,
    copy: Annotated[Path | None, typer.Option("--copy", help="The file to copy it to, instead of printing it.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a workflow's recipes, for editors.")
    ] = False,
) -> None:
    """List, print or copy the recipes that come with afa.

    An editor that knows YAML completes and checks a recipe with this first line:
    # yaml-language-server: $schema=recipe.schema.json

    \b
    Examples:
      afa recipes
      afa recipes quickstart
      afa recipes grpo/quickstart --copy my_recipe.yaml
      afa recipes --schema > recipe.schema.json
      afa recipes grpo --schema > grpo.schema.json
    """
    if schema:
        if name not in (None, *WORKFLOWS) or copy is not None:
            raise typer.BadParameter(
                f"it is the same for all recipes; give it alone, or with the workflow ({', '.join(WORKFLOWS)}).",
                param_hint="--schema",
            )
        load_quietly()
        described = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_recipe_schema(name)}
        typer.echo(json.dumps(described, indent=2, ensure_ascii=False))
        return
    if name is None:
        if copy is not None:
            raise typer.BadParameter("name the recipe to copy, as in afa recipes quickstart --copy FILE.")
        shipped = _shipped()
        width = max(map(len, shipped))
        for known, path in shipped.items():
            typer.echo(f"{known:<{width}}  {_summary(path)}")
        return
    text = _named(name).read_text(encoding="utf-8")
    if copy is None:
        typer.echo(text, nl=False)
        return
    if copy.exists():  # never over a recipe that someone has edited
        raise typer.BadParameter(f"{copy} exists already.", param_hint="--copy")
    with writing("--copy", copy), copy.open("x", encoding="utf-8") as file:
        file.write(text)
    workflow = _named(name).parent.name
    typer.echo(f"Copied to {copy}. Run it: afa {VERBS.get(workflow, workflow)} {copy}")


def find_recipe(name: str, workflow: str = WORKFLOWS[0]) -> Path:
    """The file of that path, or else the workflow's recipe of that name that comes with the package.

    Raises:
        NoRecipeError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    other = name.partition("/")[0]
    if other in WORKFLOWS and other != workflow and name in _shipped():
        verb = VERBS.get(other, other)
        raise typer.BadParameter(f"{name} is a recipe of afa {verb}: afa {verb} {name.partition('/')[2]}")
    return _named(_known_as(workflow, name.removeprefix(f"{workflow}/")))


def _recipe_schema(workflow: str | None) -> dict[str, Any]:
    if workflow == "grpo":
        from afa_lora.grpo.recipe import Recipe as GrpoRecipe

        return GrpoRecipe.model_json_schema()
    if workflow == "eagle":
        from afa_lora.eagle.recipe import Recipe as EagleRecipe

        return EagleRecipe.model_json_schema()
    from afa_lora.sft.recipe import Recipe

    return Recipe.model_json_schema()


def recipes_folder() -> Path:
    """The folder of what comes with the package: inside it, or at the top of the project's source."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def _named(name: str) -> Path:
    shipped = _shipped()
    if name not in shipped:
        raise NoRecipeError(name, shipped)
    return shipped[name]


def _shipped() -> dict[str, Path]:
    """The recipes by name."""
    return {
        _known_as(workflow, path.stem): path
        for workflow in WORKFLOWS
        for path in sorted((recipes_folder() / workflow).glob("*.yaml"))
    }


def _known_as(workflow: str, name: str) -> str:
    return name if workflow == WORKFLOWS[0] else f"{workflow}/{name}"


def _summary(path: Path) -> str:
    """The first sentence of the comment at the top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: next(i for i, x in enumerate(lines) if x in ("", "#"))])
    return comment.split(". ")[0].rstrip(".") + "."
