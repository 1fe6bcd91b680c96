"""Whole layers, as PEFT runs them, against the float64 reference: forward and every gradient."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from afa_lora import AfaLoraConfig, set_beta
from afa_lora.core.activation import ACTIVATIONS
from tests import reference


class Layer(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.linear = nn.Linear(7, 5, bias=bias)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("placement", reference.PLACEMENTS)
@pytest.mark.parametrize("activation", reference.SIGMA)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_forward_and_every_gradient(placement, activation, use_dora, beta, bias):
    config = AfaLoraConfig(
        r=3, lora_alpha=5, target_modules=["linear"], use_dora=use_dora, activation=activation, placement=placement
    )
    model = get_peft_model(Layer(bias).double(), config).double()
    layer = model.base_model.model.linear
    A, B, W, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.weight, layer.bias
    nn.init.normal_(B)
    magnitude = [layer.lora_magnitude_vector["default"].weight] if use_dora else []
    for m in magnitude:
        m.data.mul_(torch.rand_like(m) + 0.5)
    set_beta(model, beta)
    x = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, A, B, *magnitude]
    out = model(x)

    branch = reference.adapter(x, A, B, activation, placement, beta)
    if use_dora:
        expected = reference.dora(x, W, b, branch, 5 / 3, A, B, magnitude[0])
    else:
        expected = reference.lora(x, W, b, branch, 5 / 3)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, grad)
    wanted = torch.autograd.grad(expected, inputs, grad)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-9, atol=1e-9)


def test_the_reference_covers_every_builtin_activation():
    assert set(reference.SIGMA) == set(ACTIVATIONS)
