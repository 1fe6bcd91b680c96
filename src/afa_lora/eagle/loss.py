"""What the draft learns (EAGLE-1, section 4.2): the target's features, and the distributions that they stand for.

    L = SmoothL1(f̂, f) · feature_weight + CE(softmax(head(f)), softmax(head(f̂))) · token_weight

The output layer is as wide as the vocabulary, so it is applied to some positions at a time, and what the backward
needs of it, the gradient with respect to f̂, is computed in the forward: nothing of vocabulary size outlives a chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, smooth_l1_loss

from afa_lora.core.dora import opmath


class DraftLosses(NamedTuple):
    """By position, (positions,) each.

    Attributes:
        feature: SmoothL1, the mean over the feature's numbers.
        token: the cross-entropy in nats.
        agrees: 1 where both distributions have the same most likely token, else 0.
    """

    feature: Tensor
    token: Tensor
    agrees: Tensor


def draft_losses(predicted: Tensor, true: Tensor, head: Tensor, chunk: int) -> DraftLosses:
    """The losses of predicted features.

    Args:
        predicted: f̂, (positions, hidden).
        true: f, (positions, hidden).
        head: the target's output layer, (vocabulary, hidden); its dtype is the products'.
        chunk: how many positions go through it at a time.
    """
    dtype = opmath(predicted)
    feature = smooth_l1_loss(predicted.to(dtype), true.to(dtype), reduction="none").mean(-1)
    token, agrees = _SoftCrossEntropy.apply(predicted, true, head, chunk)
    return DraftLosses(feature, token, agrees)


class _SoftCrossEntropy(torch.autograd.Function):
    """−Σ p log q over the vocabulary, p = softmax(head(f)), q = softmax(head(f̂)); d/df̂ = (q − p)·head."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, true: Tensor, head: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        dtype = opmath(predicted)
        losses = predicted.new_empty(len(predicted), dtype=dtype)
        agrees = torch.empty_like(losses)
        gradient = torch.empty_like(predicted) if ctx.needs_input_grad[0] else None
        for start in range(0, len(predicted), chunk):
            rows = slice(start, start + chunk)
            wanted = linear(true[rows].to(head.dtype), head).to(dtype)  # (chunk, vocabulary)
            logits = linear(predicted[rows].to(head.dtype), head).to(dtype)
            agrees[rows] = (wanted.argmax(-1) == logits.argmax(-1)).to(dtype)
            p, log_q = wanted.softmax(-1), logits.log_softmax(-1)
            losses[rows] = -torch.linalg.vecdot(p, log_q)
            if gradient is not None:
                gradient[rows] = (log_q.exp_().sub_(p).to(head.dtype) @ head).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(agrees)
        return losses, agrees

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss[:, None].to(gradient.dtype), None, None, None
