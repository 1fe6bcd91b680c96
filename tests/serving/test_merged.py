"""The merged model that transformers loads back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from afa_lora import load_adapter
from afa_lora.serving import PROBE, Export, ExportError, export_gguf, export_merged, find_source
from afa_lora.serving.check import ROUNDING
from afa_lora.serving.source import load_source
from tests.serving.models import save_adapter, save_model

TEXT = "we're of the other theme, 99"


@pytest.mark.parametrize("kind", ["llama", "llama tied", "llama with biases", "qwen3 tied"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_it_is_the_same_function(tmp_path: Path, kind: str, use_dora: bool) -> None:
    base = save_model(tmp_path / "base", kind)
    adapter = save_adapter(tmp_path / "adapter", base, use_dora=use_dora)
    done = export_merged(adapter, tmp_path / "out")
    token_ids = AutoTokenizer.from_pretrained(done.path)(TEXT, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(base)
    before = model(token_ids).logits
    adapted = PeftModel.from_pretrained(model, adapter)(token_ids).logits
    merged = AutoModelForCausalLM.from_pretrained(done.path)
    torch.testing.assert_close(merged(token_ids).logits, adapted, atol=1e-3, rtol=1e-4)
    assert (adapted - before).abs().max() > 0.5
    assert merged.config.tie_word_embeddings is model.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_the_tokenizer_and_the_generation_settings_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_model(tmp_path / "base", dtype=dtype)
    GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=2).save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", base)
    done = export_merged(adapter, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(done.path, dtype="auto").dtype is dtype
    assert GenerationConfig.from_pretrained(done.path).temperature == 0.6
    there, here = (AutoTokenizer.from_pretrained(folder) for folder in (base, done.path))
    chat = [{"role": "user", "content": TEXT}]
    assert here.apply_chat_template(chat, tokenize=False) == there.apply_chat_template(chat, tokenize=False)


def test_a_model_that_was_not_merged_is_found_out(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda model: model.unload(), raising=False)
    with pytest.raises(ExportError, match="another function"):
        export_merged(adapter, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_quantised_base_model_is_refused(tmp_path: Path, adapter: Path, base: Path) -> None:
    from transformers import BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    quantised.save_pretrained(tmp_path / "int8")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "int8")
    assert "quantization_config" in json.loads((tmp_path / "int8" / "config.json").read_text())
    with pytest.raises(ExportError, match="stored quantised"):
        export_merged(adapter, tmp_path / "out", base=str(tmp_path / "int8"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_merged, export_gguf])
def test_a_lost_merge_is_found_out_where_bfloat16_could_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Export]
) -> None:
    base = save_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, std=0.005)
    _, reference = load_source(find_source(adapter), PROBE)
    effect = float((reference.logits - reference.base_logits).norm() / reference.logits.norm())
    assert 1e-3 < effect < ROUNDING[torch.bfloat16] / 2
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda model: model.unload(), raising=False)
    with pytest.raises(ExportError, match="another function"):
        export(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("std", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_small_adapter_on_bfloat16_is_merged_in_float32_and_rounded_once(
    tmp_path: Path, std: float, use_dora: bool
) -> None:
    base = save_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, std=std, use_dora=use_dora)
    done = export_merged(adapter, tmp_path / "out")
    exact = load_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).merge_and_unload()
    found = AutoModelForCausalLM.from_pretrained(done.path, dtype="auto").state_dict()
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in exact.state_dict().items())


def test_one_weight_that_was_written_otherwise_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(tmp_path / "base", dtype=torch.bfloat16)
    adapter = save_adapter(tmp_path / "adapter", base, std=0.005)
    save = PreTrainedModel.save_pretrained

    def spoil(model: PreTrainedModel, folder: Path) -> None:
        save(model, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] *= 1 + 2**-7  # one unit in the last place
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", spoil)
    with pytest.raises(ExportError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        export_merged(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
