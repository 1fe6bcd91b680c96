"""What other programs load: the exact tensors and keys of each format, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from peft import inject_adapter_in_model
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typer.testing import CliRunner

from afa_cli.eagle.export import export_draft as verb
from afa_lora import AfaLoraConfig
from afa_lora.core.errors import InvalidSettingError
from afa_lora.eagle.export import FORMATS, export_draft, write
from afa_lora.eagle.model import ADAPTED_LAYERS, DraftError, EagleConfig, EagleDraft
from afa_lora.eagle.target import TargetEnds
from afa_lora.serving import ExportError
from tests.eagle.conftest import SHAPE, make_target
from tests.eagle.test_model import TENSORS

KEYS = {
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "torch_dtype",
    "rope_theta",
    "rope_scaling",
}
SERVED_KEYS = KEYS | {"dtype", "head_dim", "attention_bias", "mlp_bias", "rope_parameters"}
WANTED = {
    "vllm": (SERVED_KEYS, TENSORS, "LlamaForCausalLM"),
    "sglang": (SERVED_KEYS, TENSORS | {"fc.bias"}, "LlamaForCausalLMEagle"),
    "safeailab": (KEYS | {"bias"}, TENSORS, "LlamaForCausalLM"),
}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 12_345.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {**SCALED, "original_max_position_embeddings": 32},
}

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture
def saved(tmp_path: Path, draft: EagleDraft) -> Path:
    draft.save_pretrained(tmp_path / "run" / "draft")
    return tmp_path / "run" / "draft"


def save_draft(folder: Path, **settings: object) -> EagleDraft:
    """An untrained draft for a target of other settings."""
    draft = TargetEnds.of(LlamaForCausalLM(LlamaConfig(**{**SHAPE, **settings})), "tiny").new_draft()
    draft.save_pretrained(folder)
    return draft


def read(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("to", FORMATS)
def test_each_loader_gets_its_tensors_and_keys_and_no_others(
    tmp_path: Path, saved: Path, draft: EagleDraft, to: str
) -> None:
    done = export_draft(saved.parent, tmp_path / "out", to=to)  # a run's folder
    keys, names, architecture = WANTED[to]
    assert {file.name for file in done.path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    tensors, config = load_file(done.path / "model.safetensors"), read(done.path)
    assert (set(tensors), set(config)) == (names, keys)
    for name, tensor in draft.state_dict().items():
        assert torch.equal(tensors.pop(name), tensor)
    assert all(not tensor.any() and tensor.shape == (32,) for tensor in tensors.values())  # fc.bias
    assert (config["architectures"], config["model_type"]) == ([architecture], "llama")
    assert (config["num_hidden_layers"], config["tie_word_embeddings"]) == (1, False)
    assert config["max_position_embeddings"] == 256
    assert [config[key] for key in ("attention_bias", "mlp_bias", "bias") if key in config].count(True) == 0
    assert done.path.name in done.usage


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("to", ["vllm", "sglang"])
def test_a_rope_is_written_in_the_old_form_and_in_the_new(tmp_path: Path, kind: str, to: str) -> None:
    draft = save_draft(tmp_path / "draft", rope_parameters=ROPES[kind], head_dim=16)
    export_draft(tmp_path / "draft", tmp_path / "out", to=to)
    config = read(tmp_path / "out")
    assert (config["rope_theta"], config["head_dim"]) == (ROPES[kind]["rope_theta"], 16)
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    new = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    for part in (old, new):
        rope = LlamaRotaryEmbedding(LlamaConfig(**part))
        assert torch.equal(rope.inv_freq, draft.rotary_emb.inv_freq)
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == draft.config.rope_parameters


def test_what_safeailab_cannot_compute_is_refused(tmp_path: Path) -> None:
    for name, settings, message in (
        ("llama3", {"rope_parameters": ROPES["llama3"]}, "rope_type='llama3' with rope_theta=500000"),
        ("theta", {"rope_parameters": {**ROPES["linear"], "rope_theta": 5e5}}, "rope_type='linear'"),
        ("heads", {"head_dim": 16}, "head_dim=16"),
    ):
        save_draft(tmp_path / name, **settings)
        with pytest.raises(ExportError, match=message):
            export_draft(tmp_path / name, tmp_path / "out", to="safeailab")
    assert not (tmp_path / "out").exists()
    save_draft(tmp_path / "linear", rope_parameters=ROPES["linear"])
    export_draft(tmp_path / "linear", tmp_path / "out", to="safeailab")
    assert read(tmp_path / "out")["rope_scaling"] == {"type": "linear", "factor": 4.0}


def test_the_dtype_is_the_drafts_or_the_chosen_one(tmp_path: Path, draft: EagleDraft) -> None:
    draft.to(torch.bfloat16).save_pretrained(tmp_path / "draft")
    for dtype, expected in ((None, "bfloat16"), ("float16", "float16")):
        done = export_draft(tmp_path / "draft", tmp_path / expected, to="sglang", dtype=dtype)
        found = load_file(done.path / "model.safetensors")
        assert {str(tensor.dtype) for tensor in found.values()} == {f"torch.{expected}"}
        assert torch.equal(found["fc.weight"], draft.fc.weight.to(getattr(torch, expected)))
        assert (read(done.path)["torch_dtype"], read(done.path)["dtype"]) == (expected, expected)


def test_weights_beyond_float16_are_refused(tmp_path: Path, draft: EagleDraft) -> None:
    with torch.no_grad():
        draft.fc.weight[3, 5] = 1e5
    draft.save_pretrained(tmp_path / "draft")
    with pytest.raises(ExportError, match=r"fc\.weight.*dtype=float16"):
        export_draft(tmp_path / "draft", tmp_path / "out", to="vllm", dtype="float16")
    assert not (tmp_path / "out").exists()
    export_draft(tmp_path / "draft", tmp_path / "out", to="vllm")


def test_a_draft_that_is_not_merged_is_refused(tmp_path: Path, draft: EagleDraft) -> None:
    inject_adapter_in_model(AfaLoraConfig(r=2, target_modules=list(ADAPTED_LAYERS)), draft)
    draft.save_pretrained(tmp_path / "draft")
    with pytest.raises(DraftError, match="no merged draft"):
        export_draft(tmp_path / "draft", tmp_path / "out", to="vllm")


def test_the_target_is_checked_if_it_is_given(tmp_path: Path, saved: Path, target: PreTrainedModel) -> None:
    other = make_target("llama")
    torch.nn.init.normal_(other.model.norm.weight)
    for name, model in (("right", target), ("wrong", other)):
        model.save_pretrained(tmp_path / name)
    with pytest.raises(DraftError, match="another target, tiny"):
        export_draft(saved, tmp_path / "out", to="vllm", model=str(tmp_path / "wrong"))
    done = export_draft(saved, tmp_path / "out", to="vllm", model=str(tmp_path / "right"))
    assert str(tmp_path / "right") in done.usage


def test_without_a_draft_it_is_said_what_there_is(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "recipe.yaml").touch()
    (tmp_path / "empty").mkdir()
    make_target("llama").save_pretrained(tmp_path / "model")
    for name, message in (
        ("gone", "There is no folder"),
        ("unfinished", "Finish it: afa eagle train"),
        ("model", "holds no draft: its config.json has model_type='llama'"),
        ("empty", "holds no draft, nor a folder draft/"),
    ):
        with pytest.raises(DraftError, match=message):
            export_draft(tmp_path / name, tmp_path / "out", to="vllm")
    with pytest.raises(ExportError, match="exists already"):
        export_draft(saved, tmp_path / "model", to="vllm")
    with pytest.raises(InvalidSettingError, match=r"format='sglan' is not known.*'sglang'"):
        export_draft(saved, tmp_path / "out", to="sglan")
    with pytest.raises(InvalidSettingError, match="dtype='int8'"):
        export_draft(saved, tmp_path / "out", to="vllm", dtype="int8")


@pytest.mark.parametrize("fault", ["tensor", "rope", "scaling"])
def test_what_was_written_wrongly_is_found_out(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "tensor":
        save = write.save_file

        def spoil(tensors: dict[str, torch.Tensor], path: Path, **how: Any) -> None:
            save({**tensors, "fc.weight": tensors["fc.weight"] + 1}, path, **how)

        monkeypatch.setattr(write, "save_file", spoil)
    else:
        form = FORMATS["vllm"]

        def other(config: EagleConfig, dtype: torch.dtype) -> dict[str, Any]:
            rope = {**YARN, "attention_factor": 2.0} if fault == "scaling" else ROPES["default"]
            return {**form.config(config, dtype), "rope_parameters": rope, "rope_scaling": None}

        if fault == "scaling":
            save_draft(saved, rope_parameters=YARN)
        monkeypatch.setitem(FORMATS, "vllm", dataclasses.replace(form, config=other))
    with pytest.raises(ExportError, match="other tensors.*fc.weight" if fault == "tensor" else "another rope"):
        export_draft(saved, tmp_path / "out", to="vllm")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_verb_writes_and_says_how_to_serve(tmp_path: Path, saved: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    out = tmp_path / "out"
    answer = CliRunner().invoke(
        app, [str(saved.parent), "--format", "sglang", "--out", str(out), "--dtype", "bfloat16"]
    )
    assert answer.exit_code == 0, answer.output
    for part in ("10 tensors", "bfloat16", "--speculative-algorithm EAGLE", str(out)):
        assert part in answer.output
    text = (out / "README.md").read_text()
    assert text.startswith('---\nbase_model: "tiny"\n')
    assert "--speculative-draft-model-path path/to/this/folder" in text


def test_an_embedded_target_is_not_converted_for_a_command(
    tmp_path: Path, draft: EagleDraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFA_CACHE", str(tmp_path / "cache"))
    draft.config.target_name = "smollm2-135m"
    draft.save_pretrained(tmp_path / "draft")
    done = export_draft(tmp_path / "draft", tmp_path / "out", to="vllm")
    assert "vllm serve path/to/the/target " in done.usage
    assert 'embedded_folder("smollm2-135m")' in done.checks[-1]
    assert not (tmp_path / "cache").exists()
