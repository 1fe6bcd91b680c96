import pytest
import torch

from afa_lora.core.dora import dora_norm, dora_rescale, squared_row_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norm_equals_that_of_the_full_product(dtype):
    W, A, B = torch.randn(96, 64).to(dtype), torch.randn(8, 64).to(dtype), torch.randn(96, 8).to(dtype) * 0.3
    full = torch.linalg.norm(W.double() + 1.7 * B.double() @ A.double(), dim=1)
    error = ((dora_norm(W, A, B, 1.7).double() - full) / full).abs().max()
    assert error < (1e-14 if dtype == torch.float64 else 1e-6)


def test_norm_with_the_cached_square_is_the_same_to_the_bit():
    W, A, B = torch.randn(96, 64), torch.randn(8, 64), torch.randn(96, 8)
    assert torch.equal(dora_norm(W, A, B, 2.0, squared_row_norm(W)), dora_norm(W, A, B, 2.0))


def test_at_b_zero_the_norm_is_the_base_weights_to_the_bit():
    W, A = torch.randn(96, 64), torch.randn(8, 64)
    assert torch.equal(dora_norm(W, A, torch.zeros(96, 8), 2.0), squared_row_norm(W).sqrt())


def test_norm_is_detached():
    A, B = torch.randn(8, 64, requires_grad=True), torch.randn(96, 8, requires_grad=True)
    assert not dora_norm(torch.randn(96, 64), A, B, 2.0).requires_grad


def test_rescale_leaves_the_bias_out_of_the_factor():
    summed, bias, factor = torch.randn(5, 7), torch.randn(7), torch.rand(7) + 0.5
    torch.testing.assert_close(dora_rescale(summed, bias, factor), (summed - bias) * factor + bias)
    torch.testing.assert_close(dora_rescale(summed, None, factor), summed * factor)
    assert torch.equal(dora_rescale(summed, bias, torch.ones(7)), summed)
