"""``afa inspect`` and ``afa merge`` on good, annealing, foreign and damaged adapters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import afa_lora
from afa_lora import AfaLoraConfig, set_beta
from afa_lora.running.checkpoints import seal
from tests.cli.conftest import Afa
from tests.tiny_chat import save_tiny_chat_model

WEIGHTS = "adapter_model.safetensors"


def save_adapter(folder: Path, base: Path, beta: float | None = None, **settings: Any) -> Path:
    """Save an adapter with B ≠ 0: plain if ``beta`` is ``None``, else AFA at that β."""
    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    config = LoraConfig(**arguments) if beta is None else AfaLoraConfig(**arguments)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if beta is not None:
        set_beta(adapted, beta)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def annealing(tmp_path: Path, chat_model: Path) -> Path:
    return save_adapter(tmp_path / "annealing", chat_model, 0.25, activation="gelu", schedule="cosine")


@pytest.fixture
def plain(tmp_path: Path, chat_model: Path) -> Path:
    return save_adapter(tmp_path / "plain", chat_model, 0.0)


def test_inspect_a_finished_adapter(afa: Afa, plain: Path, chat_model: Path) -> None:
    shown = afa("inspect", plain)
    assert shown.code == 0
    for part in (
        "plain LoRA",
        "4, alpha 8, scale 2",
        "4: q_proj ×2, v_proj ×2",
        str(chat_model),
        "F32",
        "stock PEFT, vLLM (afa export --to vllm says how); llama.cpp",
    ):
        assert part in shown.out
    assert "activation" not in shown.out


def test_inspect_an_annealing_adapter(afa: Afa, annealing: Path) -> None:
    shown = afa("inspect", annealing)
    assert shown.code == 0
    for part in (
        "AFA-LoRA, annealing",
        "gelu at A-σ-B, β = 0.25",
        "cosine from 0.0 to 0.3",
        "afa_lora only, until β = 0",
    ):
        assert part in shown.out


def test_inspect_dora_ranks_and_rank_stabilised_scale(afa: Afa, tmp_path: Path, chat_model: Path) -> None:
    folder = save_adapter(
        tmp_path / "dora", chat_model, use_dora=True, use_rslora=True, rank_pattern={"v_proj": 9}, lora_alpha=6
    )
    shown = afa("inspect", folder)
    assert "plain DoRA" in shown.out
    assert "4–9, alpha 6, scale 3" in shown.out
    assert "vLLM after afa export --to merged, llama.cpp after --to gguf" in shown.out


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def garble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:20] + b"\xff" * 20 + content[40:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "its header describes"),
        (cut_header, "its header is cut off"),
        (garble, "its header is not readable"),
        (lambda path: path.write_bytes(b""), "its header is cut off"),
        (lambda path: path.write_bytes(b"\xff" * 64), "its header is cut off"),
        (lambda path: save_file({}, path), "it holds no tensors"),
        (Path.unlink, "is missing"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "merge"])
def test_damaged_weights_give_one_message(
    afa: Afa, plain: Path, tmp_path: Path, verb: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(plain / WEIGHTS)
    refused = afa(verb, plain, *(["--out", tmp_path / "out"] if verb == "merge" else []))
    assert refused.code == 2
    assert refused.err.startswith(f"Error: {plain / WEIGHTS} ")
    assert message in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"peft_type": "LORA"}', "lacks lora_alpha, r"),
        ('{"peft_type": "AFA_LORA", "r": 4, "lora_alpha": 8, "beta": 1}', "lacks activation, anneal_end"),
        ('{"peft_type": "IA3"}', "peft_type='IA3' is no LoRA adapter"),
    ],
)
def test_damaged_config_gives_one_message(afa: Afa, plain: Path, config: str, message: str) -> None:
    (plain / "adapter_config.json").write_text(config)
    refused = afa("inspect", plain)
    assert refused.code == 2
    assert message in refused.err


def test_a_folder_that_is_no_adapter(afa: Afa, tmp_path: Path) -> None:
    refused = afa("inspect", tmp_path)
    assert refused.code == 2
    assert "is no adapter folder" in refused.err


def test_merge_writes_the_same_function_and_says_how_near(
    afa: Afa, plain: Path, chat_model: Path, tmp_path: Path
) -> None:
    done = afa("merge", plain, "--out", tmp_path / "out", "--probe", "two and two")
    assert done.code == 0
    assert "its logits are those of base model + adapter" in done.out
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")("something else", return_tensors="pt")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    before = base(**inputs).logits
    adapted = PeftModel.from_pretrained(base, plain)(**inputs).logits
    torch.testing.assert_close(merged(**inputs).logits, adapted, atol=1e-4, rtol=0)
    assert (adapted - before).abs().max() > 0.01


def test_merge_keeps_the_base_models_dtype(afa: Afa, plain: Path, chat_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "bfloat16"
    AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(chat_model).save_pretrained(base)
    assert afa("merge", plain, "--out", tmp_path / "out", "--base", base).code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_annealing_adapter_is_not_merged(afa: Afa, annealing: Path, tmp_path: Path) -> None:
    refused = afa("merge", annealing, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "β" in refused.err
    assert "linearize" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"), [({"layers": 3}, "4 tensors are missing"), ({"hidden": 16}, "mismatch")]
)
def test_an_adapter_of_another_model_is_not_merged(
    afa: Afa, plain: Path, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    other = save_tiny_chat_model(tmp_path / "other", **change)
    refused = afa("merge", plain, "--out", tmp_path / "out", "--base", other)
    assert refused.code == 2
    assert f"the adapter in {plain} does not fit LlamaForCausalLM" in refused.err
    assert message in refused.err
    assert not (tmp_path / "out").exists()


def test_merge_does_not_overwrite(afa: Afa, plain: Path, tmp_path: Path) -> None:
    refused = afa("merge", plain, "--out", tmp_path)
    assert refused.code == 2
    assert "exists already" in refused.err


def test_merge_without_a_base_model(afa: Afa, plain: Path, tmp_path: Path) -> None:
    config = json.loads((plain / "adapter_config.json").read_text())
    for name, message in ((None, "does not say which base model"), ("./gone", "there is no such folder")):
        (plain / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
        refused = afa("merge", plain, "--out", tmp_path / "out")
        assert refused.code == 2
        assert message in refused.err


def test_the_folder_of_a_run_will_do(afa: Afa, plain: Path, chat_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(plain, run / "adapter")
    (run / "recipe.yaml").write_text(json.dumps({"model": str(chat_model), "output": "run"}))
    assert afa("inspect", run).out == afa("inspect", plain).out
    done = afa("merge", run, "--out", tmp_path / "out")
    assert done.code == 0
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize("verb", ["inspect", "merge"])
def test_a_path_that_is_not_there_or_a_file(afa: Afa, plain: Path, tmp_path: Path, verb: str) -> None:
    out = ["--out", tmp_path / "out"] if verb == "merge" else []
    gone = afa(verb, tmp_path / "gone", *out)
    assert gone.code == 2
    assert f"gone does not exist (looked for it in {Path.cwd()})" in gone.err
    assert "is a file" in afa(verb, plain / WEIGHTS, *out).err


def test_an_unfinished_run_is_not_merged_but_its_checkpoint_named(afa: Afa, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    checkpoint.mkdir(parents=True)
    seal(checkpoint)
    (tmp_path / "run" / "recipe.yaml").write_text("model: smollm2-135m\n")
    refused = afa("merge", tmp_path / "run", "--out", tmp_path / "out")
    assert refused.code == 2
    assert f"newest sealed checkpoint, {checkpoint}" in refused.err


@pytest.mark.parametrize("arguments", [("schedule",), ("merge", "ADAPTER"), ("export", "ADAPTER", "--to", "gguf")])
def test_a_place_that_cannot_be_written_names_the_option(
    afa: Afa, plain: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "d.jsonl").touch()
    named = [plain if argument == "ADAPTER" else argument for argument in arguments]
    refused = afa(*named, "--out", tmp_path / "d.jsonl" / "x")
    assert refused.code == 2
    assert "--out" in refused.err
    assert "cannot be written" in refused.err
    assert "another place" in refused.err
    assert ".x." not in refused.err


def test_the_first_line_of_help_is_whole(afa: Afa) -> None:
    listed = afa("--help").out
    assert "Merge an adapter into its base model.\n" in listed


def test_the_version_is_that_of_the_package(afa: Afa) -> None:
    shown = afa("--version")
    assert shown.code == 0
    assert shown.out == f"afa-lora {afa_lora.__version__}\n"
