"""A run's folder or an adapter's: the adapter, its base model, and what to give where there is none."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from afa_lora.models import ModelError
from afa_lora.running.checkpoints import seal
from afa_lora.serving import NoAdapterError, find_source, locate
from afa_lora.serving.source import PROBE, load_source

RECIPE = {"model": "org/model", "method": "afa-lora", "output": "run"}


def save_recipe(run: Path, **settings: object) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **settings}))
    return run


def save_checkpoint(run: Path, step: int, sealed: bool) -> Path:
    checkpoint = run / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if sealed:
        seal(checkpoint)
    return checkpoint


@pytest.mark.parametrize("part", [".", "adapter", "checkpoints/checkpoint-6"])
def test_the_recipe_of_the_run_says_how_the_base_is_loaded(tmp_path: Path, adapter: Path, part: str) -> None:
    options = {"revision": "v2", "attn_implementation": "eager"}
    run = save_recipe(tmp_path / "run", train={"model_init_kwargs": options, "trust_remote_code": True})
    for folder in ("adapter", "checkpoints/checkpoint-6"):
        shutil.copytree(adapter, run / folder)
    found = locate(run / part)
    assert found.adapter == (run / "adapter" if part == "." else run / part)
    assert (found.base, found.options) == ("org/model", {"trust_remote_code": True, **options})
    assert found.recipe == run / "recipe.yaml"
    assert locate(run / part, "other").options == {}
    assert locate(run / part, "org/model").options == found.options


def test_an_adapter_names_its_revision(tmp_path: Path, adapter: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "revision": "v2"}))
    assert locate(copy).options == {"revision": "v2"}
    assert locate(copy).recipe is None


def test_the_revision_of_the_run_is_what_is_loaded(
    tmp_path: Path, adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / "models--org--model"
    shutil.copytree(base, hub / "snapshots" / ("1" * 40))
    (hub / "refs").mkdir()
    (hub / "refs" / "v2").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = save_recipe(tmp_path / "run", train={"model_init_kwargs": {"revision": "v2", "device_map": "auto"}})
    shutil.copytree(adapter, run / "adapter")
    model, _ = load_source(find_source(run), PROBE)
    assert model.config.num_hidden_layers == 2
    save_recipe(run)  # the main revision is not in the cache
    with pytest.raises(ModelError):
        load_source(find_source(run), PROBE)


@pytest.mark.parametrize("name", ["model", "./model", "deep/er/model"])
def test_a_relative_path_says_where_it_was_looked_for(tmp_path: Path, adapter: Path, base: Path, name: str) -> None:
    run = save_recipe(tmp_path / "run", model=name)
    shutil.copytree(adapter, run / "adapter")
    with pytest.raises(ModelError) as refused:
        load_source(find_source(run), PROBE)
    for part in ("relative path", str(Path.cwd()), "--base", str(run / "recipe.yaml")):
        assert part in str(refused.value)
    load_source(find_source(run, str(base)), PROBE)


def test_without_an_adapter_it_is_said_what_there_is(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(NoAdapterError) as refused:
            locate(path)
        return str(refused.value)

    assert "There is no folder" in message(tmp_path / "gone")
    assert "neither an adapter nor a run" in message(tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in message(tmp_path / "file")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    assert "is a model's folder" in message(tmp_path / "model")


def test_an_unfinished_run_names_its_newest_sealed_checkpoint(tmp_path: Path) -> None:
    run = save_recipe(tmp_path / "run")
    for step, sealed, expected in (
        (7, False, "not written to its end"),
        (10, True, "t-10."),
        (9, True, "t-10."),
        (11, False, "t-10."),
    ):
        save_checkpoint(run, step, sealed)
        with pytest.raises(NoAdapterError) as refused:
            locate(run)
        assert expected in str(refused.value)
        assert f"afa sft {run / 'recipe.yaml'}" in str(refused.value)


def test_the_run_of_a_draft_is_told_from_an_adapters(tmp_path: Path) -> None:
    with pytest.raises(NoAdapterError, match=r"EAGLE draft.*afa eagle export"):
        locate(save_recipe(tmp_path / "run", method="eagle+afa-lora"))


def test_a_run_of_the_whole_model_has_no_adapter(tmp_path: Path) -> None:
    run = save_recipe(tmp_path / "run", method="full")
    save_checkpoint(run, 6, sealed=True)
    with pytest.raises(NoAdapterError, match=r"unfinished run with method=full"):
        locate(run)
    (run / "model").mkdir()
    (run / "model" / "config.json").touch()
    with pytest.raises(NoAdapterError, match=r"method=full, which has no adapter.* already in .*run/model") as refused:
        locate(run)
    assert "checkpoint-6" not in str(refused.value)
