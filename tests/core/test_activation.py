import pytest
import torch

from afa_lora.core.activation import ACTIVATIONS, get_activation, phi, phi_backward, register_activation
from afa_lora.core.errors import InvalidSettingError
from tests import reference


@pytest.fixture
def registry():
    before = dict(ACTIVATIONS)
    yield ACTIVATIONS
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)


@pytest.mark.parametrize("name", reference.SIGMA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_exact_at_both_ends(name, dtype):
    activation = ACTIVATIONS[name]
    h = torch.randn(1000).to(dtype) * 3
    assert torch.equal(phi(h, activation, 0.0), h)
    assert torch.equal(phi(h, activation, 1.0), activation.function(h))


@pytest.mark.parametrize("name", reference.SIGMA)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_value_and_derivative_against_the_reference(name, beta):
    h = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(h)
    expected = reference.phi(h, name, beta)
    torch.testing.assert_close(phi(h, ACTIVATIONS[name], beta), expected)
    (wanted,) = torch.autograd.grad(expected, h, grad)
    torch.testing.assert_close(phi_backward(grad, h.detach(), ACTIVATIONS[name], beta), wanted)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beta_as_a_tensor_computes_the_same_as_beta_as_a_number(name, dtype):
    h = torch.randn(1000).to(dtype)
    by_number = phi(h, ACTIVATIONS[name], 0.37)
    by_tensor = phi(h, ACTIVATIONS[name], torch.tensor(0.37))
    torch.testing.assert_close(by_tensor, by_number, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu"])
def test_the_derivative_at_zero_is_one_half(name):
    h = torch.zeros(3, requires_grad=True)
    ACTIVATIONS[name].function(h).sum().backward()
    assert h.grad.tolist() == [0.5] * 3
    assert ACTIVATIONS[name].vector_jacobian(torch.ones(3), torch.zeros(3)).tolist() == [0.5] * 3


def test_a_registered_function_is_differentiated_by_autograd(registry):
    register_activation("softsign", torch.nn.functional.softsign)
    h = torch.randn(50, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(h)
    (expected,) = torch.autograd.grad(torch.nn.functional.softsign(h), h, grad)
    torch.testing.assert_close(get_activation("softsign").vector_jacobian(grad, h), expected)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("relu", torch.relu, "already registered"),
        ("softmax", lambda h: torch.softmax(h, -1), "mixes elements"),
        ("total", torch.sum, "must keep shape and dtype"),
        ("double", torch.Tensor.double, "must keep shape and dtype"),
    ],
)
def test_unusable_functions_are_refused(registry, name, function, message):
    with pytest.raises(InvalidSettingError, match=message):
        register_activation(name, function)


def test_unknown_activation_lists_the_known_ones():
    with pytest.raises(InvalidSettingError, match=r"activation='sillu' is not known.*'relu'.*Did you mean 'silu'\?"):
        get_activation("sillu")
