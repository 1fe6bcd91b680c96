"""Recipes: what is read, what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from afa_lora.sft.recipe import RecipeError, dump_recipe, load_recipe, parse_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "sft").glob("*.yaml"))


def write(folder: Path, settings: dict[str, Any] | str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_is_valid(path: Path) -> None:
    load_recipe(path)


def test_overrides_reach_every_depth_and_are_typed_as_in_yaml(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, settings),
        [
            "train.learning_rate=1e-4",
            "anneal.anneal_end=30",
            "adapter.target_modules=[q_proj, v_proj]",
            "method=lora",
            "data.system=",
            "train.warmup_steps=2",
        ],
    )
    assert recipe.train["learning_rate"] == 1e-4
    assert recipe.anneal.anneal_end == 30
    assert isinstance(recipe.anneal.anneal_end, int)
    assert isinstance(recipe.anneal.anneal_start, float)
    assert recipe.adapter["target_modules"] == ["q_proj", "v_proj"]
    assert recipe.method == "lora"
    assert recipe.data.system is None
    assert recipe.train["warmup_steps"] == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2E+3", -2000.0),
        ("12", 12),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("null", None),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(
    settings: dict[str, Any], tmp_path: Path, text: str, value: object
) -> None:
    read = load_recipe(write(tmp_path, settings), [f"train.run_name={text}"]).train["run_name"]
    assert read == value
    assert type(read) is type(value)


def test_dumped_recipe_reads_back_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["train"] |= {"save_strategy": "no", "run_name": "1e-4", "hub_model_id": "true"}
    recipe = parse_recipe(settings)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metod=lora", "'metod' is no key here. Did you mean 'method'?"),
        ("method=afa-lra", "method: .*'afa-lra'.* Did you mean 'afa-lora'?"),
        ("anneal.placment=A-s-B", "anneal: 'placment' is no key here. Did you mean 'placement'?"),
        ("anneal.anneal_end=soon", "anneal.anneal_end: .*'soon'"),
        ("adapter.lora_alhpa=3", "adapter: 'lora_alhpa' is no argument of peft.LoraConfig. Did you mean 'lora_alpha'?"),
        ("adapter.use_dora=true", "adapter: 'use_dora' is not set here but by 'method'"),
        ("adapter.activation=gelu", "adapter: 'activation' is not set here but by 'anneal.activation'"),
        (
            "train.max_step=1",
            "train: 'max_step' is no argument of trl.SFTConfig. Did you mean 'max_steps'?",
        ),
        ("train.output_dir=x", "train: 'output_dir' is not set here but by 'output'"),
        ("data.source=web", "data: .*'reasoning-gym', 'file', 'hub'"),
        ("data.trian=x", "data: 'trian' is no key here. Did you mean 'train'?"),
        ("data.test_items=-1", "data.test_items: .*greater than or equal to 0 .it is -1"),
        ("evaluate.max_new_tokens=0", "evaluate.max_new_tokens: .*greater than 0"),
        ("model=", "model: "),
        ("train.learning_rate", "must look like train.learning_rate=1e-4"),
        ("method.x=1", "'method' is a value, not a section"),
        ("train.seed=[1", "is no valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(
    settings: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        load_recipe(write(tmp_path, settings), [override])


def test_missing_keys_are_named_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, {"method": "lora"}))
    for key in ("model", "output", "data"):
        assert f"{key}: this key is needed" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold keys and values"),
        ("model: a\nmodel: b\n", "'model' is there twice"),
        ("model: [\n", "is no valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
