"""What is kept of a cache of keys and values after a cycle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache


def keep_entries(cache: DynamicCache, past: int, rows: Sequence[int]) -> None:
    """Keep the first ``past`` entries and, of those after them, the given ones, moved up to follow each other.

    In place, so that the text's own entries are not copied.

    Args:
        cache: of ordinary growing layers.
        past: how many entries of the text before the tree.
        rows: of the tree's entries those to be kept, ascending, counted from 0.
    """
    moved = [row for place, row in enumerate(rows) if row != place]
    first, end = past + len(rows) - len(moved), past + len(rows)
    index: Tensor | None = None
    for layer, name in itertools.product(cache.layers, ("keys", "values")):
        states: Tensor = getattr(layer, name)  # (1, heads, entries, head size)
        if moved:
            index = torch.tensor(moved, device=states.device) + past if index is None else index
            states[:, :, first:end] = states[:, :, index]
        setattr(layer, name, states[:, :, :end])
