"""What only a CUDA device can show: the same numbers there, no synchronisation, one graph."""

import copy

import pytest
import torch
from peft import LoraConfig

from afa_lora import AfaLoraConfig, Annealer, linearize, merge, set_beta
from afa_lora.core.activation import ACTIVATIONS
from afa_lora.core.branch import adapter_branch
from afa_lora.core.placement import PLACEMENTS
from tests import reference
from tests.peft.helpers import adapted, assert_same, gradients, logits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_branch_against_the_reference(placement, activation, dtype, tolerance):
    shapes = (64, 96), (64, 80), (8, 80), (96, 8)  # result, x, A, B
    result, x, A, B = (torch.randn(shape, device="cuda") / shape[1] ** 0.5 for shape in shapes)
    result, x, A, B = (t.to(dtype).requires_grad_() for t in (result, x, A, B))
    settings = {"scaling": 2.0, "beta": 0.4, "activation": ACTIVATIONS[activation], "placement": PLACEMENTS[placement]}
    out = adapter_branch(result, x, A, B, **settings)
    wide = [t.detach().double().requires_grad_() for t in (result, x, A, B)]
    expected = wide[0] + 2.0 * reference.adapter(*wide[1:], activation, placement, 0.4)
    assert_same(out.double(), expected, tolerance)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (result, x, A, B), grad)
    wanted = torch.autograd.grad(expected, wide, grad.double())
    for f, w in zip(found, wanted, strict=True):
        assert_same(f.double(), w, tolerance)


@pytest.mark.parametrize("use_dora", [False, True])
def test_beta_zero_is_stock_peft(tiny_llama, token_ids, use_dora):
    options = {"r": 4, "target_modules": "all-linear", "use_dora": use_dora}
    token_ids = token_ids.cuda()
    theirs = adapted(copy.deepcopy(tiny_llama).cuda(), LoraConfig(**options))
    ours = adapted(tiny_llama.cuda(), AfaLoraConfig(**options))
    set_beta(ours, 0.0)
    assert_same(logits(ours, token_ids), logits(theirs, token_ids), 5e-6)
    found, wanted = gradients(ours, token_ids), gradients(theirs, token_ids)
    for name, grad in wanted.items():
        assert_same(found[name], grad, 5e-5, name)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("placement", ["A-σ-B", "σ-A-σ-B-σ"])
def test_a_step_and_a_new_beta_never_wait_for_the_device(tiny_llama, token_ids, use_dora, placement):
    config = AfaLoraConfig(r=4, target_modules="all-linear", use_dora=use_dora, placement=placement)
    model = adapted(tiny_llama.cuda(), config).train()
    hidden = torch.randn(2, 12, 32, device="cuda", requires_grad=True)
    layer = model.base_model.model.model.layers[0].mlp
    annealer = Annealer(model, 100)
    layer(hidden).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            hidden.sum().item()
        betas = []
        for step in (0, 10, 29, 30):
            betas.append(annealer.set_step(step))
            layer(hidden).sum().backward()  # raises if anything in it waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert betas == pytest.approx([1.0, 2 / 3, 1 / 30, 0.0])


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_equals_eager_in_two_graphs(tiny_llama, token_ids, use_dora, dtype):
    token_ids = token_ids.cuda()
    model = adapted(tiny_llama.cuda().to(dtype), AfaLoraConfig(r=4, target_modules="all-linear", use_dora=use_dora))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model)
    annealer = Annealer(model, 10)
    for step in range(5):
        annealer.set_step(step)
        with torch.no_grad():
            found = compiled(input_ids=token_ids).logits
        assert_same(found, logits(model, token_ids), 1e-5 if dtype == torch.float32 else 0.03)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("use_dora", [False, True])
def test_linearize_and_merge(tiny_llama, token_ids, use_dora):
    model = adapted(tiny_llama.cuda(), AfaLoraConfig(r=4, target_modules="all-linear", use_dora=use_dora))
    set_beta(model, 0.5)
    batch = {"input_ids": token_ids.cuda()}
    linearize(model, batch)
    _, report = merge(model, batch)
    assert report.max_logit_difference <= 1e-4 * report.max_logit
