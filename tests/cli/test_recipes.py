"""``afa recipes``: what comes with the package, from the source tree and from an installed wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from afa_cli.recipes import find_recipe
from afa_lora.eagle.recipe import load_recipe as load_eagle_recipe
from afa_lora.grpo.recipe import load_recipe as load_grpo_recipe
from afa_lora.sft import load_recipe
from tests.cli.conftest import Afa

PROJECT = Path(__file__).parents[2]
SFT = sorted(path.stem for path in (PROJECT / "recipes" / "sft").glob("*.yaml"))
GRPO = sorted(path.stem for path in (PROJECT / "recipes" / "grpo").glob("*.yaml"))
EAGLE = sorted(path.stem for path in (PROJECT / "recipes" / "eagle").glob("*.yaml"))
SHIPPED = [*SFT, *(f"grpo/{name}" for name in GRPO), *(f"eagle/{name}" for name in EAGLE)]


def test_every_shipped_recipe_is_listed_with_what_it_does_and_is_valid(afa: Afa) -> None:
    lines = afa("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == SHIPPED
    assert all(len(line.split()) > 4 for line in lines)
    for name in SFT:
        load_recipe(find_recipe(name))
    for name in GRPO:
        load_grpo_recipe(find_recipe(name, "grpo"))
    for name in EAGLE:
        load_eagle_recipe(find_recipe(name, "eagle"))


def test_a_recipe_is_printed_and_copied_but_never_over_another_file(afa: Afa, tmp_path: Path) -> None:
    text = (PROJECT / "recipes" / "sft" / "quickstart.yaml").read_text()
    assert afa("recipes", "quickstart").out == text
    copy = tmp_path / "mine.yaml"
    assert afa("recipes", "quickstart", "--copy", copy).code == 0
    assert copy.read_text() == text
    copy.write_text("edited")
    refused = afa("recipes", "quickstart", "--copy", copy)
    assert refused.code == 2
    assert "exists already" in refused.err
    assert copy.read_text() == "edited"


def test_an_unknown_name_is_answered_with_the_closest(afa: Afa) -> None:
    refused = afa("recipes", "quikstart")
    assert refused.code == 2
    assert "Did you mean 'quickstart'?" in refused.err
    assert all(name in refused.err for name in SHIPPED)


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart").is_absolute()
    (tmp_path / "quickstart").write_text("")
    assert find_recipe("quickstart") == Path("quickstart")


def test_the_schema_is_one_that_editors_read(afa: Afa) -> None:
    schema = json.loads(afa("recipes", "--schema").out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"model", "output", "data"} <= set(schema["required"])
    recipe = yaml.safe_load((PROJECT / "recipes" / "sft" / "quickstart.yaml").read_text())
    assert recipe.keys() <= schema["properties"].keys()
    schema = json.loads(afa("recipes", "grpo", "--schema").out)
    assert "rewards" in schema["required"]
    recipe = yaml.safe_load((PROJECT / "recipes" / "grpo" / "gsm8k.yaml").read_text())
    assert recipe.keys() <= schema["properties"].keys()


@pytest.mark.parametrize("other", [["quickstart"], ["--copy", "mine.yaml"]])
def test_the_schema_takes_no_other_argument(afa: Afa, other: list[str]) -> None:
    refused = afa("recipes", *other, "--schema")
    assert refused.code == 2
    assert "give it alone" in refused.err


@pytest.mark.integration
def test_a_wheel_has_the_recipes(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(PROJECT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {f"afa_cli/recipes/{name if '/' in name else f'sft/{name}'}.yaml" for name in SHIPPED} <= set(names)
    program = "from afa_cli.recipes import find_recipe; print(find_recipe('quickstart'))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "installed")
