import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from afa_lora import AfaLoraConfig, CorruptedAdapterError, NotLinearError, load_adapter, set_beta
from afa_lora.peft.checkpoint import BETA_KEY
from afa_lora.peft.config import AFA_FIELDS
from tests.peft.helpers import adapted, logits


def config(**options):
    return AfaLoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("beta", [1.0, 1 / 3, 0.0])
@pytest.mark.parametrize("placement", ["A-σ-B", "σ-A-B-σ"])
def test_saved_and_loaded_is_the_same_function_to_the_bit(tiny_llama, token_ids, tmp_path, use_dora, beta, placement):
    base = copy.deepcopy(tiny_llama)
    settings = config(use_dora=use_dora, placement=placement, activation="gelu", schedule="cosine", anneal_end=77)
    model = adapted(tiny_llama, settings)
    set_beta(model, beta)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    difference = (logits(loaded, token_ids) - logits(model, token_ids)).abs().max()
    if beta > 0:
        assert difference == 0
        restored = loaded.peft_config["default"]
        assert (restored.beta, restored.placement, restored.activation) == (beta, placement, "gelu")
        assert (restored.schedule, restored.anneal_end) == ("cosine", 77)
    else:  # a plain adapter now: PEFT's own layers run it
        assert difference < 1e-5


def test_the_file_tells_the_truth(tiny_llama, tmp_path):
    model = adapted(tiny_llama, config())
    set_beta(model, 0.25)
    model.save_pretrained(tmp_path / "annealing")
    saved = json.loads((tmp_path / "annealing/adapter_config.json").read_text())
    assert saved["peft_type"] == "AFA_LORA"
    assert saved["beta"] == 0.25
    assert load_file(tmp_path / "annealing/adapter_model.safetensors")[BETA_KEY] == 0.25

    set_beta(model, 0.0)
    model.save_pretrained(tmp_path / "linear")
    plain = get_peft_model(model.unload(), LoraConfig(r=4, target_modules="all-linear"))
    plain.save_pretrained(tmp_path / "peft")
    ours, theirs = {
        f: json.loads((tmp_path / f"{f}/adapter_config.json").read_text()) for f in ("linear", "peft")
    }.values()
    assert ours.keys() == theirs.keys()
    assert not set(AFA_FIELDS) & ours.keys()
    tensors = [load_file(tmp_path / f"{f}/adapter_model.safetensors").keys() for f in ("linear", "peft")]
    assert tensors[0] == tensors[1]


STOCK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
assert not any(name.startswith("afa_lora") for name in sys.modules)
with torch.no_grad():
    torch.save(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits, sys.argv[3])
"""


@pytest.mark.integration
@pytest.mark.parametrize("use_dora", [False, True])
def test_stock_peft_in_a_process_without_us(tiny_llama, tmp_path, use_dora):
    tiny_llama.save_pretrained(tmp_path / "base")
    model = adapted(tiny_llama, config(use_dora=use_dora))

    def stock():
        arguments = [str(tmp_path / name) for name in ("base", "adapter", "logits.pt")]
        return subprocess.run([sys.executable, "-c", STOCK, *arguments], capture_output=True, text=True, check=False)

    model.save_pretrained(tmp_path / "adapter")
    refused = stock()
    assert refused.returncode != 0
    assert "AFA_LORA" in refused.stderr

    set_beta(model, 0.0)
    model.save_pretrained(tmp_path / "adapter")
    loaded = stock()
    assert loaded.returncode == 0, loaded.stderr
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(found, logits(model, torch.tensor([[5, 6, 7, 8]])), rtol=1e-5, atol=1e-5)


def test_annealing_weights_cannot_be_loaded_as_plain_lora(tiny_llama, tmp_path):
    base = copy.deepcopy(tiny_llama)
    adapted(tiny_llama, config()).save_pretrained(tmp_path)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    with pytest.raises(NotLinearError, match=r"still annealing \(β = 1\)"):
        model.load_adapter(str(tmp_path), "default")


def test_loading_linear_weights_sets_beta_to_zero(tiny_llama, tmp_path, token_ids):
    base = copy.deepcopy(tiny_llama)
    adapted(tiny_llama, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path)
    expected = logits(tiny_llama, token_ids)
    model = get_peft_model(base, config())
    model.load_adapter(str(tmp_path), "default")
    assert model.peft_config["default"].beta == 0.0
    torch.testing.assert_close(logits(model.eval(), token_ids), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def folder(tiny_llama, tmp_path):
    adapted(copy.deepcopy(tiny_llama), config()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_truncated_file_gives_one_message(tiny_llama, folder, keep):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptedAdapterError, match=r"adapter_model.safetensors is damaged or truncated"):
        load_adapter(tiny_llama, folder)


def test_an_adapter_for_another_architecture(tiny_gpt2, folder):
    with pytest.raises(CorruptedAdapterError, match="does not fit GPT2LMHeadModel; it was made for another base model"):
        load_adapter(tiny_gpt2, folder)


def test_an_adapter_for_a_base_model_of_another_size(tiny_llama, tmp_path, folder):
    wider = type(tiny_llama)(type(tiny_llama.config)(**{**tiny_llama.config.to_dict(), "hidden_size": 64}))
    with pytest.raises(CorruptedAdapterError, match=r"14 have another shape .* made for another base model"):
        load_adapter(wider, folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 96}])
def test_a_plain_adapter_for_another_base_model(tiny_llama, tmp_path, change):
    adapted(copy.deepcopy(tiny_llama), LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path)
    config_file = tmp_path / "adapter_config.json"
    saved = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**saved, "target_modules": "all-linear"}))
    other = type(tiny_llama)(type(tiny_llama.config)(**{**tiny_llama.config.to_dict(), "layer_types": None, **change}))
    with pytest.raises(CorruptedAdapterError, match="does not fit LlamaForCausalLM; it was made for another base"):
        load_adapter(other, tmp_path)


def test_another_shape(tiny_llama, folder):
    from safetensors.torch import save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(k for k in tensors if "q_proj.lora_A" in k)
    tensors[key] = torch.zeros(4, 99)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CorruptedAdapterError, match=r"1 have another shape .*\(4, 99\) in the file, \(4, 32\)"):
        load_adapter(tiny_llama, folder)


def test_missing_tensors(tiny_llama, folder):
    from safetensors.torch import save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(k for k in tensors if "q_proj.lora_A" in k))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CorruptedAdapterError, match="1 of 28 tensors are missing"):
        load_adapter(tiny_llama, folder)


def test_no_adapter_there(tiny_llama, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config.json"):
        load_adapter(tiny_llama, tmp_path)
