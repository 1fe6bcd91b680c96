"""What can be exported is found; what cannot is refused before anything is loaded or written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from afa_lora import AfaLoraError, CorruptedAdapterError, NotLinearError
from afa_lora.serving import (
    Export,
    ExportError,
    NoAdapterError,
    export_adapter,
    export_gguf,
    export_merged,
    export_vllm,
    find_source,
)
from tests.serving.models import save_adapter, save_model

EXPORTS = (export_merged, export_adapter, export_vllm, export_gguf)
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def copy(tmp_path: Path, adapter: Path) -> Path:
    return shutil.copytree(adapter, tmp_path / "copy")


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def test_an_adapter_names_its_base_model_and_the_caller_overrides_it(adapter: Path, base: Path) -> None:
    found = find_source(adapter)
    assert (found.adapter, found.base) == (adapter, str(base))
    assert type(found.config) is LoraConfig
    assert find_source(adapter, "other").base == "other"


def test_a_run_is_its_adapter_with_the_model_of_its_recipe(tmp_path: Path, adapter: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "recipe.yaml").write_text("model: smollm2-135m\noutput: run\n")
    found = find_source(tmp_path / "run")
    assert (found.adapter, found.base) == (tmp_path / "run" / "adapter", "smollm2-135m")
    (tmp_path / "run" / "recipe.yaml").write_text("- no\n")
    with pytest.raises(NoAdapterError, match=r"recipe\.yaml is damaged"):
        find_source(tmp_path / "run")


@pytest.mark.parametrize("export", EXPORTS)
def test_an_annealing_adapter_is_refused_with_both_ways_on(
    tmp_path: Path, base: Path, export: Callable[..., Export]
) -> None:
    annealing = save_adapter(tmp_path / "annealing", base, 0.25)
    with pytest.raises(NotLinearError) as refused:
        export(annealing, tmp_path / "out")
    for part in ("β = 0.25", "anneal_end=0.3", "afa_lora.linearize"):
        assert part in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["annealing"]


def test_annealing_weights_under_a_plain_configuration_are_refused(tmp_path: Path, base: Path, copy: Path) -> None:
    shutil.copy(save_adapter(tmp_path / "annealing", base, 0.5) / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(NotLinearError, match=r"β = 0\.5"):
        find_source(copy)


@pytest.mark.parametrize("export", EXPORTS)
def test_nothing_is_overwritten(tmp_path: Path, adapter: Path, export: Callable[..., Export]) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export(adapter, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("fault", ["a tensor is missing", "another base model", "no such base model", "empty probe"])
def test_what_fails_leaves_nothing(tmp_path: Path, copy: Path, export: Callable[..., Export], fault: str) -> None:
    options = {"base": None, "probe": "The fox"}
    if fault == "a tensor is missing":
        tensors = load_file(copy / WEIGHTS)
        tensors.popitem()
        save_file(tensors, copy / WEIGHTS)
    elif fault == "another base model":
        options["base"] = str(save_model(tmp_path / "other", "llama with wide heads"))
    elif fault == "no such base model":
        options["base"] = "./nowhere"
    else:
        options["probe"] = ""
    before = set(tmp_path.iterdir())
    with pytest.raises(AfaLoraError):
        export(copy, tmp_path / "out", **options)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("export", EXPORTS)
def test_a_full_disk_leaves_nothing(tmp_path: Path, adapter: Path, export: Callable[..., Export]) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of files, which Windows cannot")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((adapter / WEIGHTS).stat().st_size - 1, hard))
    try:
        with pytest.raises(ExportError, match=r"(?i)out cannot be written|written to") as refused:
            export(adapter, tmp_path / "out")
        assert ".out." not in str(refused.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", "17"])
def test_a_damaged_configuration_is_one_message(copy: Path, content: str) -> None:
    (copy / CONFIG).write_text(content)
    with pytest.raises(CorruptedAdapterError, match=CONFIG):
        find_source(copy)


def test_damaged_or_missing_weights_are_one_message(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:100])
    with pytest.raises(CorruptedAdapterError, match=WEIGHTS):
        find_source(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(CorruptedAdapterError, match=WEIGHTS):
        find_source(copy)


def test_another_kind_of_adapter_and_one_without_a_base(copy: Path) -> None:
    change_config(copy, base_model_name_or_path=None)
    with pytest.raises(NoAdapterError, match="--base"):
        find_source(copy)
    (copy / CONFIG).write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": "x"}))
    with pytest.raises(ExportError, match="IA3"):
        find_source(copy)


def test_a_place_that_cannot_be_written_is_named_and_no_hidden_file(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "d.jsonl").touch()
    for export in EXPORTS:
        with pytest.raises(ExportError, match=r"is a file\. Choose another place \(--out\)") as refused:
            export(adapter, tmp_path / "d.jsonl" / "deep" / "x")
        assert ".x." not in str(refused.value)
