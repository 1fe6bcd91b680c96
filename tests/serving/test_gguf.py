"""The GGUF file, run by llama.cpp."""

import json
import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from afa_lora import InvalidSettingError, load_adapter
from afa_lora.models import load_model
from afa_lora.serving import ExportError, export_gguf, export_merged
from afa_lora.serving import gguf as gguf_module
from afa_lora.serving.gguf import open_gguf
from tests.serving.greedy import is_greedy
from tests.serving.models import CHAT, CONFIGS, SPLITTERS, VOCABULARY, save_adapter, save_model

pytest.importorskip("llama_cpp", reason="runs the file in llama.cpp (pip install llama-cpp-python)")
WRITTEN = [kind for kind in CONFIGS if kind != "gpt2"]


def greedy(path: Path, prompt: list[int], length: int) -> list[int]:
    llama = open_gguf(path, context=len(prompt) + length)
    tokens = llama.generate(prompt, temp=0.0, repeat_penalty=1.0)
    answer = [next(tokens) for _ in range(length)]
    llama.close()
    return answer


@pytest.mark.parametrize("kind", WRITTEN)
def test_llama_cpp_continues_as_transformers_does(tmp_path: Path, kind: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", kind))
    merged = AutoModelForCausalLM.from_pretrained(export_merged(adapter, tmp_path / "merged").path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    prompt = AutoTokenizer.from_pretrained(tmp_path / "base")("we're of the other theme: 99").input_ids
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=None)

    def expected(model: torch.nn.Module) -> list[int]:
        return model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()

    done = export_gguf(adapter, tmp_path / "model.gguf")
    assert greedy(done.path, prompt, 24) == expected(merged) != expected(base)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "base", "merged", "model.gguf"}
    assert shlex.split(done.usage) == ["llama-server", "-m", str(done.path)]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_vocabulary_splitter_special_tokens_and_chat_template(tmp_path: Path, splitter: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", splitter=splitter))
    fields = gguf.GGUFReader(export_gguf(adapter, tmp_path / "model.gguf").path).fields
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == splitter
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == VOCABULARY > len(tokenizer)
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.chat_template"].contents() == CHAT


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")],
)
def test_matrices_take_the_dtype_and_vectors_stay_float32(tmp_path: Path, adapter: Path, dtype: str, kind: str) -> None:
    tensors = gguf.GGUFReader(export_gguf(adapter, tmp_path / "model.gguf", dtype=dtype).path).tensors
    assert {(len(tensor.shape), tensor.tensor_type.name) for tensor in tensors} == {(2, kind), (1, "F32")}


def test_the_dtype_is_the_base_models_unless_given(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", dtype=torch.bfloat16))
    tensors = gguf.GGUFReader(export_gguf(adapter, tmp_path / "model.gguf").path).tensors
    assert {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) == 2} == {"BF16"}


def test_an_unknown_dtype(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(InvalidSettingError, match="Did you mean 'float16'"):
        export_gguf(adapter, tmp_path / "model.gguf", dtype="flaot16")


def test_an_architecture_that_is_not_written(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", "gpt2"), target_modules=["c_attn"])
    with pytest.raises(ExportError, match=r"GPT2LMHeadModel is none of .* \(--to merged\)"):
        export_gguf(adapter, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='dynamic'"),
    ],
)
def test_settings_that_would_be_computed_otherwise(
    tmp_path: Path, adapter: Path, change: dict[str, object], message: str
) -> None:
    base = save_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExportError, match=message):
        export_gguf(adapter, tmp_path / "model.gguf", base=str(base))
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by"),
        ({"normalizer": {"type": "Lowercase"}}, "no byte-level BPE"),
    ],
)
def test_a_tokenizer_without_a_counterpart(
    tmp_path: Path, adapter: Path, change: dict[str, object], message: str
) -> None:
    base = save_model(tmp_path / "base")
    settings = json.loads((base / "tokenizer.json").read_text())
    (base / "tokenizer.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ExportError, match=message):
        export_gguf(adapter, tmp_path / "model.gguf", base=str(base))
    assert not (tmp_path / "model.gguf").exists()


def test_heads_in_the_wrong_order_are_found_out(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_module, "_interleave", lambda projection, heads: projection)
    with pytest.raises(ExportError, match="another function"):
        export_gguf(adapter, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_one_number_that_was_written_otherwise_is_found_out(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize = gguf.quants.quantize

    def spoil(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        values = values.copy()
        values.flat[7] *= 1.02
        return quantize(values, kind)

    monkeypatch.setattr(gguf.quants, "quantize", spoil)
    with pytest.raises(ExportError, match="is not the merged one, rounded once to bfloat16"):
        export_gguf(adapter, tmp_path / "model.gguf", dtype="bfloat16")
    assert not list(tmp_path.iterdir())


def test_a_splitter_under_a_wrong_name_is_found_out(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afa_lora.serving.gguf_tokenizer._splitter", lambda settings: "llama-bpe")
    with pytest.raises(ExportError, match="splits"):
        export_gguf(adapter, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.serving
@pytest.mark.slow
def test_smollm2_continues_in_llama_cpp_as_in_transformers(tmp_path: Path) -> None:
    model, tokenizer = load_model("smollm2-135m")
    adapter = save_adapter(tmp_path / "adapter", Path(model.config.name_or_path), r=8, lora_alpha=16, std=0.03)
    path = export_gguf(adapter, tmp_path / "model.gguf").path
    prompts = tokenizer(["The capital of France is", "def fibonacci(n):\n", "17 + 25 ="]).input_ids
    answers = [greedy(path, prompt, 24) for prompt in prompts]
    assert not any(is_greedy(model.eval(), *pair) for pair in zip(prompts, answers, strict=True))
    adapted = load_adapter(model, adapter).eval()
    assert all(is_greedy(adapted, *pair) for pair in zip(prompts, answers, strict=True))
