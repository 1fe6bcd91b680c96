"""β = 0 is PEFT's LoRA and DoRA; B = 0 is the base model; every option of LoraConfig keeps its meaning."""

import copy

import pytest
import torch
from peft import LoraConfig

from afa_lora import AfaLoraConfig, set_beta
from tests.peft.helpers import adapted, assert_same, gradients, logits

OPTIONS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "c_attn": 2}, "alpha_pattern": {"up_proj": 3, "c_fc": 3}},
    "dora_patterns": {"use_dora": True, "rank_pattern": {"q_proj": 2}, "use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "trained_bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "exclude": {"exclude_modules": ["k_proj"]},
}


def pair(model, **options):
    """The same model with PEFT's adapter and with ours at β = 0."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}
    peft = adapted(copy.deepcopy(model), LoraConfig(**settings))
    ours = adapted(copy.deepcopy(model), AfaLoraConfig(**settings))
    set_beta(ours, 0.0)
    return peft, ours


@pytest.mark.filterwarnings("ignore:.*lora_bias.*", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_beta_zero_is_stock_peft(tiny_model, token_ids, options):
    if options.get("modules_to_save") and tiny_model.config.tie_word_embeddings:
        pytest.skip("a tied head cannot be trained on its own")
    peft, ours = pair(tiny_model, **options)
    assert_same(logits(ours, token_ids), logits(peft, token_ids), 1e-6)
    found, wanted = gradients(ours, token_ids), gradients(peft, token_ids)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert_same(found[name], grad, 1e-5, name)


def test_layers_to_transform(tiny_llama, token_ids):
    peft, ours = pair(tiny_llama, target_modules=["q_proj"], layers_to_transform=[1])
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in peft.named_parameters()}
    torch.testing.assert_close(logits(ours, token_ids), logits(peft, token_ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_draws_the_same_numbers(tiny_llama, token_ids, use_dora):
    peft, ours = pair(tiny_llama, use_dora=use_dora, lora_dropout=0.3)
    losses = []
    for model in (peft.train(), ours.train()):
        torch.manual_seed(5)
        losses.append(model(input_ids=token_ids, labels=token_ids).loss)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("placement", ["A-σ-B", "σ-A-σ-B-σ"])
def test_b_zero_is_the_base_model_exactly(tiny_model, token_ids, use_dora, beta, placement):
    expected = logits(tiny_model, token_ids)
    config = AfaLoraConfig(r=4, target_modules="all-linear", use_dora=use_dora, placement=placement)
    model = adapted(tiny_model, config, fill=False)
    set_beta(model, beta)
    found = logits(model, token_ids)
    if use_dora:  # its magnitude multiplies the base output as well, by a factor of exactly 1
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_gradient_checkpointing_changes_nothing(tiny_llama, token_ids, use_dora, beta):
    model = adapted(tiny_llama, AfaLoraConfig(r=4, target_modules="all-linear", use_dora=use_dora)).train()
    set_beta(model, beta)
    model.enable_input_require_grads()
    wanted = gradients(model, token_ids)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, token_ids)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("placement", ["A-σ-B", "σ-A-σ-B-σ"])
def test_hooked_submodules_are_called_and_compute_the_same(tiny_llama, token_ids, placement):
    model = adapted(tiny_llama, AfaLoraConfig(r=4, target_modules="all-linear", placement=placement))
    set_beta(model, 0.6)
    expected, wanted = logits(model, token_ids), gradients(model, token_ids)
    calls = []
    for name, module in model.named_modules():
        if name.endswith((".lora_A.default", ".lora_B.default")):
            module.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(logits(model, token_ids), expected)
    found = gradients(model, token_ids)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7)
    assert len(calls) == 2 * 2 * 14


@pytest.mark.parametrize("use_dora", [False, True])
def test_bfloat16_model_with_float32_adapters(tiny_llama, token_ids, use_dora):
    peft, ours = pair(tiny_llama.to(torch.bfloat16), use_dora=use_dora)
    assert {p.dtype for n, p in ours.named_parameters() if "lora_" in n} == {torch.float32}
    difference = (logits(ours, token_ids) - logits(peft, token_ids)).abs().max()
    assert difference < 0.05 * logits(peft, token_ids).abs().max()
    assert all(g.isfinite().all() for g in gradients(ours, token_ids).values())
