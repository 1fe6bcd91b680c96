"""Recipes: what is read, what is refused, and in which words."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from afa_lora.core.activation import ACTIVATIONS
from afa_lora.core.schedule import SCHEDULES
from afa_lora.settings import RecipeError, dump_yaml
from afa_lora.sft.recipe import Recipe, load_recipe, parse_recipe
from afa_lora.tuning.recipe import dump_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "sft").glob("*.yaml"))


def write(folder: Path, settings: dict[str, Any] | str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_is_valid(path: Path) -> None:
    assert load_recipe(path).model_fields_set == yaml.safe_load(path.read_text(encoding="utf-8")).keys()


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


def test_a_number_without_fraction_is_a_whole_number_as_in_the_schema(settings: dict[str, Any]) -> None:
    settings["adapter"]["r"], settings["train"]["max_steps"] = 4.0, 16.0
    recipe = parse_recipe(settings)
    for value in (recipe.adapter["r"], recipe.train["max_steps"]):
        assert isinstance(value, int)


def test_dumped_recipe_reads_back_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["train"] |= {"save_strategy": "no", "run_name": "1e-4", "hub_model_id": "true"}  # words, not a number
    recipe = parse_recipe(settings)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metod=lora", "command line: metod: no such key. Did you mean 'method'? Known keys: .*anneal"),
        ("method=afa-lra", "command line: method = 'afa-lra': it must be 'full', .*. Did you mean 'afa-lora'?"),
        ("learning_rate=1e-4", "learning_rate: there is no such key here; it belongs in 'train'"),
        ("anneal.placment=A-s-B", "anneal.placment: no such key. Did you mean 'placement'?"),
        ("anneal.placement=B-A", "anneal.placement = 'B-A': it is not known. Choose one of .*'A-σ-B'"),
        ("anneal.schedule=liner", "anneal.schedule = 'liner': .* Did you mean 'linear'?"),
        ("anneal.activation=slu", "anneal.activation = 'slu': .* Did you mean 'silu'?"),
        ("anneal.anneal_end=soon", "anneal.anneal_end = 'soon': it must be a number."),
        ("anneal.anneal_end=0.0", "command line: anneal: anneal_end=0.0 must come after"),
        ("anneal.anneal_end=1.5", "anneal: anneal_end=1.5 is out of range"),
        ("nothing.of.this=1", "command line: nothing: no such key"),
        ("adapter.lora_alhpa=3", "adapter.lora_alhpa: no such argument of peft.LoraConfig. Did you mean 'lora_alpha'?"),
        ("adapter.r=sixteen", "adapter.r = 'sixteen': it must be a whole number."),
        ("adapter.use_dora=true", "adapter.use_dora: this is set by method, not here"),
        ("adapter.activation=gelu", "adapter.activation: this is set by anneal.activation, not here"),
        ("train.max_step=1", "train.max_step: no such argument of trl.SFTConfig. Did you mean 'max_steps'?"),
        ("train.output_dir=x", "train.output_dir: this is set by output, not here"),
        ("train.hub_token=x", "train.hub_token: this is set by the environment variable HF_TOKEN, not here"),
        ("train.learning_rate=fast", "train.learning_rate = 'fast': it must be a number."),
        ("train.lr_scheduler_type=liner", "it must be 'linear', .* Did you mean 'linear'?"),
        ("train.report_to=5", "train.report_to = 5: it must be a text or a list."),
        ("train.packing=perhaps", "train.packing = 'perhaps': it must be true or false."),
        ("load.dtype=bf16", "load.dtype = 'bf16': it must be 'auto', .* Did you mean 'bfloat16'?"),
        ("load.quantization=3bit", "load.quantization = '3bit': it must be '4bit' or '8bit'."),
        ("data.source=web", "data.source = 'web': it must be 'reasoning-gym', 'file', 'hub' or 'commonsense'."),
        ("data.trian=x", "data.trian: no such key. Did you mean 'train'?"),
        ("data.test_items=-1", "data.test_items = -1: it must be greater than or equal to 0"),
        ("evaluate.max_new_tokens=0", "evaluate.max_new_tokens = 0: it must be greater than 0"),
        ("data=3", "data = 3: it must be keys with values"),
        ("evaluate=3", "evaluate = 3: it must be keys with values"),
        ("train=3", "train = 3: it must be keys with values"),
        ("model=", "model = null (empty): it must be a text"),
        ("adapter.lora_dropout=2", "adapter.lora_dropout = 2: it must be less than or equal to 1"),
        ("adapter.r=0", "adapter.r = 0: it must be greater than 0"),
        ("adapter.r=4.5", "adapter.r = 4.5: it must be a whole number."),
        ("train.max_length=4.5", "train.max_length = 4.5: it must be a whole number."),
        ("train.num_train_epochs=0", "train.num_train_epochs = 0: it must be greater than 0"),
        ("train.per_device_train_batch_size=0", "train.per_device_train_batch_size = 0: it must be greater than 0"),
        ("train.gradient_accumulation_steps=0", "train.gradient_accumulation_steps = 0: it must be greater than 0"),
        ("train.learning_rate=-1", "train.learning_rate = -1: it must be greater than 0"),
        ("train.dataloader_num_workers=-1", "train.dataloader_num_workers = -1: it must be greater than or equal"),
        ("output=~nobody-of-this-name/x", "the home folder of '~nobody-of-this-name' is not known."),
        ("train.learning_rate", "must look like train.learning_rate=1e-4"),
        ("method.x=1", "'method' is a value, not a section"),
        ("train.seed=[1", "is no valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(
    settings: dict[str, Any], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=re.sub(r"[?()|]", r"\\\g<0>", message)):
        load_recipe(write(tmp_path, settings), [override])


def test_missing_keys_are_named_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, {"method": "lora", "data": {}}))
    for key in ("model", "output", "data.source"):
        assert f"{key} is needed.\n" in f"{caught.value}\n"


def test_the_output_may_lie_in_the_home_folder(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_recipe({**settings, "output": "~/run"}).output == tmp_path / "run"


def test_keys_that_do_not_go_together_have_the_line_of_their_section(settings: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, dump_yaml(settings) + "anneal:\n  anneal_start: 0.5\n  anneal_end: 0.2\n")
    line = path.read_text().splitlines().index("anneal:") + 1
    with pytest.raises(RecipeError, match=rf"  line {line}: anneal: anneal_end=0\.2 must come after"):
        load_recipe(path)


MISTAKEN = """\
model: smollm2-135m
metod: lora          # a typo
output: runs/x
data:
  source: file
  train: data.json
adapter:
  r: sixteen         # no number
  lora_alhpa: 32     # a typo
anneal:
  placement: B-σ-A   # not one of the seven
train:
  learning_rte: 1e-4 # a typo
"""


def test_all_mistakes_of_a_file_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, MISTAKEN), ["evaluate.before=perhaps"])
    head, *mistakes = str(caught.value).splitlines()
    assert head.endswith("recipe.yaml: 6 mistakes")
    expected = [
        ("line 2: metod", "'method'"),
        ("line 8: adapter.r = 'sixteen'", "a whole number"),
        ("line 9: adapter.lora_alhpa", "'lora_alpha'"),
        ("line 11: anneal.placement = 'B-σ-A'", "'A-σ-B'"),
        ("line 13: train.learning_rte", "'learning_rate'"),
        ("command line: evaluate.before = 'perhaps'", "true or false"),
    ]
    for line, (start, part) in zip(mistakes, expected, strict=True):
        assert line.strip().startswith(start)
        assert part in line


def test_the_schema_describes_every_key_and_refuses_what_the_loader_refuses() -> None:
    schema = Recipe.model_json_schema()
    sections = {name: _resolve(schema, name) for name in ("load", "adapter", "anneal", "train", "evaluate")}
    assert "lora_alpha" in sections["adapter"]["properties"]
    assert "learning_rate" in sections["train"]["properties"]
    assert "output_dir" not in sections["train"]["properties"]
    for section in (schema, *sections.values()):
        assert section["additionalProperties"] is False
    for section in (schema, sections["load"], sections["anneal"], sections["evaluate"]):
        assert all("description" in key for key in section["properties"].values())


def test_an_editor_finds_the_mistakes_of_a_file_by_the_schema() -> None:
    schema = Recipe.model_json_schema()
    adapter, anneal, train = (_resolve(schema, name) for name in ("adapter", "anneal", "train"))
    for section, mistake in ((schema, "metod"), (adapter, "lora_alhpa"), (train, "learning_rte")):
        assert mistake not in section["properties"]
        assert section["additionalProperties"] is False
    assert adapter["properties"]["r"]["type"] == "integer"
    assert {"A-σ-B", "A-s-B"} <= set(anneal["properties"]["placement"]["enum"])
    assert "B-σ-A" not in anneal["properties"]["placement"]["enum"]
    assert anneal["properties"]["schedule"]["enum"] == [*SCHEDULES]
    assert "enum" not in anneal["properties"]["activation"]
    assert anneal["properties"]["activation"]["examples"] == [*ACTIVATIONS]


def _resolve(schema: dict[str, Any], name: str) -> dict[str, Any]:
    reference: str = schema["properties"][name]["$ref"]
    return schema["$defs"][reference.rpartition("/")[2]]


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
