"""``afa export``: each target from a tiny run, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.cli.conftest import Afa
from tests.serving.models import save_adapter, save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter") / "plain", base)


@pytest.mark.parametrize(
    ("target", "checked", "serve"),
    [
        ("merged", "Loaded back by transformers", "vllm serve {out}"),
        ("adapter", "Loaded back as PEFT's own LoRA", "PeftModel.from_pretrained(base_model, '{out}')"),
        ("vllm", "max_lora_rank", "--enable-lora --max-lora-rank 8 --lora-modules out={out}"),
        ("gguf", "Run by llama.cpp", "llama-server -m {out}"),
    ],
)
def test_each_target_says_where_what_was_checked_and_how_to_serve(
    afa: Afa, adapter: Path, tmp_path: Path, target: str, checked: str, serve: str
) -> None:
    out = tmp_path / "out"
    done = afa("export", adapter, "--to", target, "--out", out)
    assert done.code == 0
    assert done.out.startswith(f"Written to {out}.\n")
    assert checked in done.out
    assert serve.format(out=out) in done.out
    assert out.is_file() if target == "gguf" else out.is_dir()


def test_a_run_folder_and_a_dtype(afa: Afa, adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps({"model": str(base), "output": "run"}))
    out = tmp_path / "deep" / "model.gguf"
    done = afa("export", tmp_path / "run", "--to", "gguf", "--out", out, "--dtype", "bfloat16", "--probe", "the theme")
    assert done.code == 0
    assert "Merged in float32" in done.out
    assert "allowed 1e-01" in done.out
    assert 0 < out.stat().st_size < 0.7 * (base / "model.safetensors").stat().st_size


def test_the_merged_model_loads(afa: Afa, adapter: Path, tmp_path: Path) -> None:
    assert afa("export", adapter, "--to", "merged", "--out", tmp_path / "out").code == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


@pytest.mark.parametrize("target", ["merged", "adapter", "vllm", "gguf"])
def test_an_annealing_adapter_is_refused_with_one_message(afa: Afa, base: Path, tmp_path: Path, target: str) -> None:
    annealing = save_adapter(tmp_path / "annealing", base, 0.25)
    refused = afa("export", annealing, "--to", target, "--out", tmp_path / "out")
    assert refused.code == 2
    assert refused.err.startswith("Error: ")
    assert refused.err.count("\n") == 1
    assert "β = 0.25" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "vllm"], "use_dora=True"),
        (["--to", "onnx"], "onnx"),
        (["--to", "gguf", "--dtype", "flaot16"], "Did you mean 'float16'?"),
        (["--to", "merged", "--dtype", "float16"], "keeps the dtype"),
        (["--to", "merged", "--base", "./nowhere"], "there is no such folder"),
        (["--to", "merged", "--probe", ""], "has no tokens"),
    ],
)
def test_what_cannot_be_done(afa: Afa, base: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    dora = save_adapter(tmp_path / "dora", base, use_dora=True)
    refused = afa("export", dora, "--out", tmp_path / "out", *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_adapter_and_one_that_exists(afa: Afa, adapter: Path, tmp_path: Path) -> None:
    assert "neither an adapter nor a run" in afa("export", tmp_path, "--to", "merged", "--out", tmp_path / "out").err
    assert "exists already" in afa("export", adapter, "--to", "merged", "--out", tmp_path).err
