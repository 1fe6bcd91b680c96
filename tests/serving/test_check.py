"""The comparison that stands between writing something and saying that it is written."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afa_lora.serving.check import ROUNDING, ExportError, compare, compare_exactly

LOGITS = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(st.sampled_from(list(ROUNDING)), st.floats(0.01, 0.9), st.floats(0.1, 100.0))
def test_a_difference_below_the_bound_passes_and_one_above_does_not(
    dtype: torch.dtype, share: float, scale: float
) -> None:
    expected = LOGITS * scale
    near, far = (expected * (1 + ROUNDING[dtype] * factor) for factor in (share, 1 / share))
    agreement = compare(expected, near, expected * 2, dtype)
    assert agreement.difference == pytest.approx(ROUNDING[dtype] * share, rel=0.05)
    assert agreement.effect == pytest.approx(1.0)
    with pytest.raises(ExportError, match="another function"):
        compare(expected, far * 1.01, expected * 2, dtype)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_one_number_that_is_none_fails(wrong: float) -> None:
    found = LOGITS.clone()
    found[3, 4] = wrong
    with pytest.raises(ExportError, match="another function"):
        compare(LOGITS, found, LOGITS * 2, torch.bfloat16)


def test_logits_of_another_vocabulary_fail() -> None:
    with pytest.raises(ExportError, match=r"shape \(7, 49\)"):
        compare(LOGITS, LOGITS[:, :49], LOGITS, torch.float32)


@given(st.floats(-5.0, -1.0))
def test_before_rounding_what_was_lost_fails_however_small_the_adapter(exponent: float) -> None:
    base = LOGITS * (1 + 10**exponent)
    with pytest.raises(ExportError, match="another function"):
        compare_exactly(LOGITS, base, base)
    half = compare_exactly(LOGITS, LOGITS * (1 + min(0.4 * 10**exponent, 9e-5)), base)
    assert half.difference <= half.effect / 2


def test_an_adapter_that_drowns_in_rounding_is_said() -> None:
    weak = compare(LOGITS, LOGITS * 1.01, LOGITS * 1.015, torch.bfloat16)
    strong = compare(LOGITS, LOGITS * 1.01, LOGITS * 1.5, torch.bfloat16)
    assert "Rounding hides" in str(weak)
    assert "Rounding hides" not in str(strong)
