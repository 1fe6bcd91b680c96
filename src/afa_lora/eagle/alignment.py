"""What a position of the draft reads and predicts, and where a loss counts.

A conversation has tokens t_0 … t_{n-1} and features f_0 … f_{n-1}. At position i the draft reads the embedding of
t_{i+1} and f_i, and predicts f_{i+1}; the output layer makes of that the distribution of t_{i+2}. A loss counts at
position i where t_{i+1} and t_{i+2} are both the assistant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from afa_lora.eagle.target import TargetEnds, features_of

IGNORED = -100
"""The label of a position without a loss; `transformers.Trainer` counts the others."""


def counts(assistant: Tensor) -> Tensor:
    """Where a loss counts.

    Args:
        assistant: (n,) bool, which tokens are the assistant's.

    Returns:
        (n - 2,) bool, by position.
    """
    return assistant[1:-1] & assistant[2:]


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put conversations into a batch, each cut after the last position that counts and padded on the right.

    Nothing needs a mask against the padding: the attention is causal, and no padded position counts.

    Args:
        items: ``tokens`` (n,), ``assistant`` (n,) and, unless the target runs along, ``features`` (n, hidden).

    Returns:
        ``tokens`` (batch, length + 2), ``labels`` (batch, length): t_{i+2} or `IGNORED`, ``lengths`` (batch,): n, and
        ``features`` (batch, length + 1, hidden) if they were given.
    """
    positions = [_last(item) + 1 for item in items]
    batch: dict[str, Any] = {
        "tokens": _padded([item["tokens"][: end + 2] for item, end in zip(items, positions, strict=True)], 0),
        "labels": _padded([_labels(item)[:end] for item, end in zip(items, positions, strict=True)], IGNORED),
        "lengths": torch.tensor([len(item["tokens"]) for item in items]),
    }
    if "features" in items[0]:
        features = [item["features"][: end + 1] for item, end in zip(items, positions, strict=True)]
        batch["features"] = _padded(features, 0)
    return batch


def draft_inputs(
    batch: dict[str, Tensor], ends: TargetEnds, target: PreTrainedModel | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the draft reads of a batch, and what it is to predict.

    Args:
        batch: what `collate` has made.
        ends: of the target.
        target: computes the features of a batch that has none.
        dtype: of what is returned.

    Returns:
        embeddings of t_{i+1}, (batch, length, hidden), and features f_0 … f_length, (batch, length + 1, hidden): those
        but the last go in, those but the first are to come out.
    """
    tokens = batch["tokens"]
    features = batch["features"] if target is None else features_of(target, tokens[:, :-1])
    return ends.embed(tokens[:, 1:-1]).to(dtype), features.to(dtype)


def _last(item: dict[str, Tensor]) -> int:
    """The last position that counts; 0 if none does."""
    places = counts(item["assistant"]).nonzero()
    return int(places[-1]) if len(places) else 0


def _labels(item: dict[str, Tensor]) -> Tensor:
    return item["tokens"][2:].masked_fill(~counts(item["assistant"]), IGNORED)


def _padded(rows: list[Tensor], value: float) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
