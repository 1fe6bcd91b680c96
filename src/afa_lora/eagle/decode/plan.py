"""A static tree laid out by depth, with what a cycle needs of it on the device, so that no cycle waits for a copy."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from afa_lora.eagle.decode.shapes import Path


@dataclass(frozen=True)
class Level:
    """The nodes of a static tree at one depth, in the order of their paths.

    Attributes:
        parents: (nodes,), of each its parent's place among those of the level above that have children.
        ranks: (nodes,).
        expanded: (nodes that have children,), their places.
        width: the most children that a node of the level above has.
    """

    parents: Tensor
    ranks: Tensor
    expanded: Tensor
    width: int


@dataclass(frozen=True)
class Plan:
    """A static tree.

    Attributes:
        levels: from the children of the root on downwards.
        parents: (nodes,), of each its parent's number, -1 for the root.
        rows: of the root and of each node, its number among those that have children, -1 for a leaf.
    """

    levels: tuple[Level, ...]
    parents: Tensor
    rows: tuple[int, ...]


@lru_cache(maxsize=64)
def plan(paths: tuple[Path, ...], room: int, device: torch.device) -> Plan:
    """Lay out a static tree, cut at the depth ``room``."""
    kept = sorted({path for path in paths if len(path) <= room}, key=lambda path: (len(path), path))
    numbers: dict[Path, int] = {(): -1} | {path: number for number, path in enumerate(kept)}
    children = Counter(path[:-1] for path in kept)
    expanded = [path for path in numbers if children[path]]
    levels: list[Level] = []
    above: list[Path] = [()]
    for _, group in itertools.groupby(kept, key=len):
        nodes = list(group)
        places = [place for place, path in enumerate(nodes) if children[path]]
        ranks = [path[-1] for path in nodes]
        levels.append(
            Level(
                parents=torch.tensor([above.index(path[:-1]) for path in nodes], device=device),
                ranks=torch.tensor(ranks, device=device),
                expanded=torch.tensor(places, dtype=torch.long, device=device),
                width=max(ranks) + 1,
            )
        )
        above = [nodes[place] for place in places]
    return Plan(
        levels=tuple(levels),
        parents=torch.tensor([numbers[path[:-1]] for path in kept], device=device),
        rows=tuple(expanded.index(path) if path in expanded else -1 for path in numbers),
    )
