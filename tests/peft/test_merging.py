import copy

import pytest
import torch
from peft import LoraConfig

from afa_lora import AfaLoraConfig, InvalidSettingError, NotLinearError, merge, set_beta
from tests.peft.helpers import adapted, fill_b, logits


def config(**options):
    return AfaLoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


def base_weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".base_layer." in name}


@pytest.mark.filterwarnings("ignore:.*lora_bias.*", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("safe", [False, True])
def test_merged_equals_unmerged_and_unmerging_returns_the_base(tiny_model, token_ids, use_dora, safe):
    model = adapted(tiny_model, config(use_dora=use_dora))
    set_beta(model, 0.0)
    expected, base = logits(model, token_ids), base_weights(model)
    storage = {name: p.data_ptr() for name, p in model.named_parameters()}
    model.merge_adapter(safe_merge=safe)
    assert (logits(model, token_ids) - expected).abs().max() <= 1e-5
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == storage  # in place
    model.unmerge_adapter()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    merged, report = merge(model, {"input_ids": token_ids})
    assert report.max_logit_difference <= 1e-5
    assert (logits(merged, token_ids) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("use_dora", [False, True])
def test_unmerging_by_arithmetic_where_memory_is_short(tiny_llama, token_ids, use_dora, monkeypatch):
    monkeypatch.setattr("afa_lora.peft.merging._memory_allows", lambda weight: False)
    model = adapted(tiny_llama, config(use_dora=use_dora))
    set_beta(model, 0.0)
    base = base_weights(model)
    model.merge_adapter()
    model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        if name in base:
            torch.testing.assert_close(parameter, base[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_dora", [False, True])
def test_bfloat16_merges_in_float32_and_unmerges_exactly(tiny_llama, token_ids, use_dora):
    model = adapted(tiny_llama.to(torch.bfloat16), config(use_dora=use_dora))
    set_beta(model, 0.0)
    expected, base = logits(model, token_ids), base_weights(model)
    model.merge_adapter()
    scale = expected.abs().max()
    assert (logits(model, token_ids) - expected).abs().max() / scale < 0.05  # bf16 has 8 bits
    model.unmerge_adapter()
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


@pytest.mark.parametrize("kinds", [("lora", "dora"), ("dora", "lora"), ("dora", "dora"), ("dora", "plain")])
def test_several_adapters_merged_in_turn(tiny_llama, token_ids, kinds):
    options = {"r": 4, "target_modules": "all-linear"}
    configs = {
        "lora": config(),
        "dora": config(use_dora=True),
        "plain": LoraConfig(**options),
    }
    model = adapted(tiny_llama, copy.deepcopy(configs[kinds[0]]))
    model.add_adapter("second", copy.deepcopy(configs[kinds[1]]))
    fill_b(model)
    set_beta(model, 0.0)
    base = base_weights(model)
    model.merge_adapter(["default", "second"])
    model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        if name in base:
            torch.testing.assert_close(parameter, base[name], rtol=1e-5, atol=1e-6)


OPERATIONS = {
    "merge_and_unload": lambda model: model.merge_and_unload(),
    "merge_adapter": lambda model: model.merge_adapter(),
    "safe merge": lambda model: model.merge_adapter(safe_merge=True),
    "a layer's own merge": lambda model: model.base_model.model.model.layers[0].mlp.up_proj.merge(),
    "add_weighted_adapter": lambda model: model.add_weighted_adapter(["default"], [1.0], "sum"),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_everything_that_needs_a_linear_adapter_raises_and_changes_nothing(tiny_llama, token_ids, operation):
    model = adapted(tiny_llama, config())
    model.peft_config["default"].state.set_step(10, 100)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    message = r"'default' is still non-linear \(β = 0.6667 at step 10 of 100; it reaches 0 at step 30\).*linearize"
    with pytest.raises(NotLinearError, match=message):
        operation(model)
    assert {n for n, _ in model.named_parameters()} == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_conversion_to_lora_is_refused_while_annealing(tiny_llama):
    model = adapted(tiny_llama, config(use_dora=True))
    assert not model.supports_lora_conversion()
    set_beta(model, 0.0)
    assert model.supports_lora_conversion()


def test_an_annealing_adapter_does_not_stop_merging_another(tiny_llama, token_ids):
    model = adapted(tiny_llama, config())
    model.add_adapter("done", config())
    fill_b(model)
    model.peft_config["done"].beta = 0.0
    model.set_adapter("done")
    expected = logits(model, token_ids)
    merged = model.merge_and_unload(adapter_names=["done"])
    assert (logits(merged, token_ids) - expected).abs().max() <= 1e-5


def test_weighted_sum_of_linear_adapters(tiny_llama, token_ids):
    model = adapted(tiny_llama, config())
    set_beta(model, 0.0)
    expected = logits(model, token_ids)
    model.add_weighted_adapter(["default"], [1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model, token_ids), expected, rtol=1e-5, atol=1e-5)
    assert model.peft_config["sum"].beta == 0.0


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`", "ignore:Model has `tie_word_embeddings")
def test_a_tied_head_is_refused(tiny_tied_llama, token_ids):
    embedding = tiny_tied_llama.model.embed_tokens.weight.detach().clone()
    model = adapted(tiny_tied_llama, config(target_modules=["lm_head", "q_proj"]))
    set_beta(model, 0.0)
    with pytest.raises(InvalidSettingError, match=r"lm_head shares its weight with model.embed_tokens.weight"):
        model.merge_and_unload()
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_safe_merge_refuses_nan_before_it_writes(tiny_llama):
    model = adapted(tiny_llama, config(target_modules=["q_proj"]))
    set_beta(model, 0.0)
    base = base_weights(model)
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite weights; nothing was merged"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
