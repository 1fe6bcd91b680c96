"""All that is random in decoding; ``torch.manual_seed`` seeds it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def accepts(probability: float) -> bool:
    """Say yes with this probability."""
    return float(torch.rand(())) < probability


def draw(probabilities: Tensor) -> int:
    """One token of (vocabulary,), which need not sum to 1.

    Raises:
        RuntimeError: a probability is NaN.
    """
    first = (probabilities / exponentials(probabilities)).max(dim=-1)
    if first.values.isnan():
        raise RuntimeError("A token was to be drawn from probabilities with a NaN: so were the target's logits.")
    return int(first.indices)


def draw_distinct(probabilities: Tensor, count: int) -> Tensor:
    """Draw tokens without replacement, one after the other: each from what the earlier ones left, scaled to sum 1.

    The order of q / e, with e exponential, is that of such draws: the token with the rate q rings first. Tokens of
    probability 0 come last.

    Args:
        probabilities: (rows, vocabulary).
        count: how many for each row.

    Returns:
        (rows, count), in the order of the draws.
    """
    return (probabilities / exponentials(probabilities)).topk(count, dim=-1).indices


def exponentials(like: Tensor) -> Tensor:
    """Numbers with density exp(−e), one for each of a tensor's.

    On a CPU they are NumPy's, seeded by PyTorch's generator: PyTorch takes several times as long there, and for the
    vocabularies of a tree that counts. They are float64, since a 0, which float32 has about once in 2²⁴, always wins.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).exponential_()
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    return torch.from_numpy(generator.standard_exponential(tuple(like.shape)))
