"""All that is random in decoding, with PyTorch's default generators, which ``torch.manual_seed`` seeds."""

from __future__ import annotations

import torch
from torch import Tensor


def accepts(probability: float) -> bool:
    """Say yes with this probability."""
    return float(torch.rand(())) < probability


def draw(probabilities: Tensor) -> int:
    """One token of (vocabulary,)."""
    return int(torch.multinomial(probabilities, 1))


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
    return (probabilities / torch.empty_like(probabilities).exponential_()).topk(count, dim=-1).indices
