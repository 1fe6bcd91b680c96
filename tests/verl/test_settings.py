"""The parts of the plug-in that need no verl: settings, the probe, and merging on the way out."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from afa_lora import AfaLoraConfig, InvalidSettingError, NotLinearError, set_beta
from afa_lora.grpo.verl.export import adapter_is_zero, merged_weights
from afa_lora.grpo.verl.probe import Probe
from afa_lora.grpo.verl.settings import AfaSettings, read_settings


def test_without_afa_nothing_is_read() -> None:
    assert read_settings({"merge": False}) is None


def test_settings_are_the_adapters() -> None:
    settings = read_settings({"afa": {"activation": "relu", "placement": "A-s-B-s", "anneal_end": 40}})
    assert settings == AfaSettings(activation="relu", placement="A-s-B-s", anneal_end=40)
    config = AfaLoraConfig(**settings.adapter)
    assert (config.placement, config.anneal_end, config.use_dora) == ("A-σ-B-σ", 40, False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activaton": "relu"}, r"lora\.afa\.activaton is not known.*Did you mean 'activation'"),
        ({"hold_steps": 0}, r"hold_steps=0 must be a positive"),
        ({"use_dora": "yes"}, r"use_dora='yes' must be true or false"),
        ("relu", r"afa='relu' must be a mapping"),
    ],
)
def test_mistakes_are_named(given: object, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        read_settings({"afa": given})


def test_beta_is_held() -> None:
    assert [AfaSettings(hold_steps=3).clock(step) for step in range(7)] == [0, 0, 0, 3, 3, 3, 6]


def test_probe_keeps_whole_rows_or_a_prefix(tmp_path: Path) -> None:
    ids = torch.arange(40).view(4, 10)
    padded = {"input_ids": ids, "attention_mask": ids.clamp(max=1), "position_ids": ids % 10, "temperature": 1.0}
    probe = Probe(limit=25)
    probe.keep(padded)
    assert {key: tensor.tolist() for key, tensor in probe.inputs.items()} == {
        key: padded[key][:2].tolist() for key in ("input_ids", "attention_mask", "position_ids")
    }
    packed = Probe(limit=25)
    packed.keep({"input_ids": ids.view(1, 40), "attention_mask": None, "position_ids": ids.view(1, 40) % 10})
    assert torch.equal(packed.inputs["input_ids"], torch.arange(25)[None])
    packed.save(tmp_path / "probe.safetensors")
    read = Probe(limit=1)
    read.load(tmp_path / "probe.safetensors")
    assert torch.equal(read.inputs["position_ids"], packed.inputs["position_ids"])
    assert read.batch(torch.device("cpu"))["attention_mask"] is None


def adapted(model: PreTrainedModel, dora: bool, bias: float = 0.3) -> PeftModel:
    peft_model = get_peft_model(model, AfaLoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=dora))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=bias)
    return peft_model


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_sent_is_the_merged_model_and_nothing_is_written(tiny_llama: PreTrainedModel, dora: bool) -> None:
    model = adapted(tiny_llama, dora)
    set_beta(model, 0.0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    sent = dict(merged_weights(model, torch.float32, "cpu"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    expected = model.merge_and_unload().state_dict()
    assert sent.keys() == expected.keys()
    assert all(torch.equal(sent[key], expected[key]) for key in expected)


def test_a_non_linear_adapter_is_not_sent(tiny_llama: PreTrainedModel) -> None:
    model = adapted(tiny_llama, dora=False)
    with pytest.raises(NotLinearError):
        dict(merged_weights(model, torch.float32, "cpu"))


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_an_adapter_that_has_learnt_is_told_from_one_that_has_not(tiny_llama: PreTrainedModel, bias: float) -> None:
    assert adapter_is_zero(adapted(tiny_llama, dora=False, bias=bias)) == (bias == 0)
