"""What a draft proposes in a cycle: a chain, a tree that is always the same, or a tree that follows its confidence."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, fields
from functools import lru_cache

from afa_lora.core.errors import InvalidSettingError, closest

Path = tuple[int, ...]
"""A node of a static tree: at each depth the rank of the child, 0 for the most probable one."""

RANK_RATES = (0.62, 0.15, 0.07, 0.04, 0.03, 0.02, 0.015, 0.01)
"""How often the child of each rank is right, assumed alike at every node; what the default tree is built from."""


@lru_cache
def likely_paths(nodes: int, depth: int) -> tuple[Path, ...]:
    """The static tree of so many nodes that holds the most accepted tokens, if `RANK_RATES` are the rates.

    The expected number of accepted tokens is the sum over nodes of the probability that their whole path is right, so
    the best tree takes the most probable paths; their ancestors are more probable still.

    Args:
        nodes: how many.
        depth: of the longest path.
    """
    chosen: list[Path] = []
    waiting: list[tuple[float, Path]] = [(-rate, (rank,)) for rank, rate in enumerate(RANK_RATES)]
    heapq.heapify(waiting)
    while waiting and len(chosen) < nodes:
        negative, path = heapq.heappop(waiting)
        chosen.append(path)
        if len(path) < depth:
            for rank, rate in enumerate(RANK_RATES):
                heapq.heappush(waiting, (negative * rate, (*path, rank)))
    return tuple(sorted(chosen, key=lambda path: (len(path), path)))


@dataclass(frozen=True)
class Chain:
    """One token after the other.

    Attributes:
        length: how many.
    """

    length: int = 5

    def __post_init__(self) -> None:
        _check_positive(self)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The chain as a static tree: always the first child."""
        return tuple((0,) * depth for depth in range(1, self.length + 1))

    def __str__(self) -> str:
        return f"chain:{self.length}"


@dataclass(frozen=True)
class StaticTree:
    """The same tree in each cycle, as EAGLE-1 has it (Li et al., arXiv 2401.15077).

    Attributes:
        paths: its nodes; with each node its parent and its siblings of lower rank.
    """

    paths: tuple[Path, ...] = likely_paths(26, 5)

    def __post_init__(self) -> None:
        present = set(self.paths)
        if not present:
            raise InvalidSettingError("StaticTree(paths=()) has no node. Give one at least, as ((0,),).")
        for path in self.paths:
            wanted = [path[:-1]] if len(path) > 1 else []
            wanted += [(*path[:-1], path[-1] - 1)] if path and path[-1] > 0 else []
            if not path or min(path) < 0 or not present.issuperset(wanted):
                raise InvalidSettingError(
                    f"StaticTree(paths=…) has the node {path}, but not its parent or not its siblings of lower rank. "
                    "Add what lacks, or drop the node."
                )

    def __str__(self) -> str:
        return "tree" if self == StaticTree() else f"tree of {len(self.paths)} nodes"


@dataclass(frozen=True)
class DynamicTree:
    """The most confident paths, as EAGLE-2 has it (Li et al., arXiv 2406.16858).

    At each depth the ``top_k`` best nodes get ``top_k`` children each, best by the product of the draft's
    probabilities along the path; of all nodes the ``total`` best are proposed.

    Attributes:
        total: how many nodes are proposed.
        depth: of the longest path. What EAGLE-2's code calls ``depth`` is one less.
        top_k: how many nodes of a depth are expanded, and how many children each gets.
    """

    total: int = 60
    depth: int = 5
    top_k: int = 10

    def __post_init__(self) -> None:
        _check_positive(self)

    def __str__(self) -> str:
        return f"dynamic:total={self.total},depth={self.depth},top_k={self.top_k}"


Shape = Chain | StaticTree | DynamicTree

KINDS = ("chain", "tree", "dynamic")
FORMS = "chain:5, tree, or dynamic:total=60,depth=5,top_k=10"


def parse_shape(text: str) -> Shape:
    """Read a shape: ``chain``, ``chain:5``, ``tree``, ``dynamic``, ``dynamic:total=60,depth=5,top_k=10``.

    Raises:
        InvalidSettingError: it is none.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "chain":
        return Chain(_integer(rest, text)) if rest else Chain()
    if kind == "tree" and not rest:
        return StaticTree()
    if kind == "dynamic":
        known = [field.name for field in fields(DynamicTree)]
        given: dict[str, int] = {}
        for item in filter(None, rest.split(",")):
            key, _, value = item.partition("=")
            if key.strip() not in known:
                hint = closest(key.strip(), known)
                raise InvalidSettingError(f"shape={text!r}: {key.strip()!r} is none of {', '.join(known)}.{hint}")
            given[key.strip()] = _integer(value, text)
        return DynamicTree(**given)
    raise InvalidSettingError(f"shape={text!r} is not known. Give {FORMS}.{closest(kind, KINDS)}")


def longest_path(shape: Shape) -> int:
    """The depth of a shape's deepest node."""
    return shape.depth if isinstance(shape, DynamicTree) else max(len(path) for path in shape.paths)


def _check_positive(shape: Chain | DynamicTree) -> None:
    for field in fields(shape):
        if (value := getattr(shape, field.name)) < 1:
            raise InvalidSettingError(f"{type(shape).__name__}({field.name}={value}) proposes nothing. Give 1 or more.")


def _integer(text: str, whole: str) -> int:
    if not text.strip().isdecimal():
        raise InvalidSettingError(f"shape={whole!r}: {text!r} is no whole number above 0. Give {FORMS}.")
    return int(text)
