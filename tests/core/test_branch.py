import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afa_lora.core.activation import ACTIVATIONS
from afa_lora.core.branch import adapter_branch
from afa_lora.core.placement import PLACEMENTS, PLAIN
from tests import reference

TOKENS, IN, OUT, R, SCALING = 6, 7, 5, 3, 1.7


def tensors(*leading, dtype=torch.float64):
    shapes = (*leading, OUT), (*leading, IN), (R, IN), (OUT, R), (OUT,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def run(result, x, A, B, bias, activation="silu", placement="A-σ-B", beta=0.3):
    sites = PLACEMENTS[placement] if beta else PLAIN
    return adapter_branch(
        result, x, A, B, bias, scaling=SCALING, beta=beta, activation=ACTIVATIONS[activation], placement=sites
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_first_and_second_derivatives(placement, activation, beta):
    result, x, A, B, bias = tensors(4)
    for base in (result, None):
        inputs = [t for t in (base, x, A, B, bias) if t is not None]

        def function(*given, base=base):
            return run(None if base is None else given[0], *given[-4:], activation, placement, beta)

        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_saves_x_and_rank_r_tensors_only(placement):
    tokens, width, r = 64, 128, 4
    x, A, B = torch.randn(tokens, width, requires_grad=True), torch.randn(r, width), torch.randn(width, r)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run(torch.randn(tokens, width), x, A.requires_grad_(), B.requires_grad_(), None, "silu", placement, 0.5)
    extra = [t for t in saved if t.data_ptr() not in {x.data_ptr(), A.data_ptr(), B.data_ptr()}]
    assert [tuple(t.shape) for t in extra] == [(tokens, r)]


def test_without_gradients_nothing_is_saved():
    result, x, A, B, bias = tensors(4)
    with torch.no_grad():
        assert run(result, x, A, B, bias).grad_fn is None


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("frozen", [(1,), (2,), (3,), (2, 3), (1, 2, 3)])
def test_frozen_inputs_get_no_gradient_and_the_others_the_same(placement, frozen):
    inputs = tensors(4)
    grad = torch.randn(4, OUT, dtype=torch.float64)
    full = torch.autograd.grad(run(*inputs, placement=placement), inputs, grad)
    trained = [i for i in range(5) if i not in frozen]
    inputs = [t.detach().requires_grad_(i in trained) for i, t in enumerate(inputs)]
    part = torch.autograd.grad(run(*inputs, placement=placement), [inputs[i] for i in trained], grad)
    for i, found in zip(trained, part, strict=True):
        torch.testing.assert_close(found, full[i])


def test_a_frozen_a_saves_no_x():
    _, x, A, B, _ = tensors(4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = run(None, x, A.detach(), B, None)
    assert x.data_ptr() not in {t.data_ptr() for t in saved}
    (grad,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    assert grad.shape == x.shape
    with pytest.raises(RuntimeError, match="lora_A is frozen"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


shapes = st.lists(st.integers(0, 4), min_size=0, max_size=3)


@settings(deadline=None)
@given(
    leading=shapes,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    placement=st.sampled_from(list(PLACEMENTS)),
    activation=st.sampled_from(list(ACTIVATIONS)),
    beta=st.floats(0, 1),
    fused=st.booleans(),
    contiguous=st.booleans(),
)
def test_any_shape_and_dtype_against_the_reference(leading, dtype, placement, activation, beta, fused, contiguous):
    result, x, A, B, _ = (t.detach().to(dtype) for t in tensors(*leading, dtype=torch.float32))
    if not contiguous and x.dim() > 1:
        x = x.transpose(0, -2).contiguous().transpose(0, -2)
    x, A, B = (t.requires_grad_() for t in (x, A, B))
    out = run(result if fused else None, x, A, B, None, activation, placement, beta)
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    expected = SCALING * reference.adapter(*wide, activation, placement, beta)
    if fused:
        expected = expected + result.double()
    assert out.shape == expected.shape
    assert out.dtype == dtype
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(out.sum(), (x, A, B))
    wanted = torch.autograd.grad(expected.sum(), wide)
    for f, w in zip(found, wanted, strict=True):
        scale = max(1.0, float(w.abs().max())) if w.numel() else 1.0
        torch.testing.assert_close(f.double() / scale, w / scale, rtol=0, atol=4 * tolerance)


def test_computes_in_the_dtype_of_a_and_saves_x_uncast():
    x = torch.randn(4, IN, dtype=torch.bfloat16, requires_grad=True)
    A, B = torch.randn(R, IN, requires_grad=True), torch.randn(OUT, R, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = run(torch.randn(4, OUT, dtype=torch.bfloat16), x, A, B, None)
    assert out.dtype == torch.float32
    assert x.data_ptr() in {t.data_ptr() for t in saved}
    out.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_autocast_computes_in_its_dtype_and_gradients_come_back_in_the_parameters(placement):
    result, x, A, B, bias = tensors(4, dtype=torch.float32)
    exact = run(result, x, A, B, bias, placement=placement)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(result.bfloat16(), x, A, B, bias, placement=placement)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.2)
    out.float().sum().backward()
    assert {t.grad.dtype for t in (x, A, B, bias)} == {torch.float32}


def test_relu_after_b_learns_at_beta_one_although_b_starts_at_zero():
    x, A = torch.randn(8, IN), torch.randn(R, IN, requires_grad=True)
    B = torch.zeros(OUT, R, requires_grad=True)
    run(None, x, A, B, None, "relu", "A-B-σ", 1.0).sum().backward()
    assert B.grad.abs().min() > 0
