"""A tree of proposed tokens below the last token of the text, which is its root."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftTree:
    """What the draft proposes in a cycle.

    Attributes:
        tokens: (nodes,), without the root; parents come before their children, siblings in the order of their draw.
        parents: (nodes,), the number of each node's parent, -1 for the root.
        depth: of the deepest node; children of the root have depth 1.
        probabilities: (expanded nodes, vocabulary), the distributions that the children were drawn from, without
            replacement; None where the proposals are no random draws.
        rows: of the root and of each node, the row of ``probabilities``, -1 for a leaf; empty where there are none.
    """

    tokens: Tensor
    parents: Tensor
    depth: int
    probabilities: Tensor | None = None
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def children(self) -> dict[int, dict[int, int]]:
        """Of each node that has children: token to number, in the order of their draw; the root is -1."""
        found: dict[int, dict[int, int]] = {}
        tokens, parents = torch.stack((self.tokens, self.parents)).tolist()  # one wait for the device
        for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            found.setdefault(parent, {})[token] = node
        return found

    def visible(self) -> Tensor:
        """(1 + nodes, 1 + nodes), the root first: True where the row's node is the column's or lies below it."""
        above = torch.cat((self.parents.new_zeros(1), self.parents + 1))  # the root above itself
        itself = torch.eye(len(above), dtype=torch.bool, device=above.device)
        visible = itself
        for _ in range(self.depth):
            visible = itself | visible[above]
        return visible

    def distribution(self, node: int) -> Tensor | None:
        """(vocabulary,) from which the children of the node were drawn; -1 is the root."""
        if self.probabilities is None or self.rows[node + 1] < 0:
            return None
        return self.probabilities[self.rows[node + 1]]


def accepted_path(tree: DraftTree, tokens: Tensor) -> list[int]:
    """The nodes that agree with the tokens that the target gave.

    Args:
        tree: what was proposed.
        tokens: (any number,), the tokens that follow the root, chosen by the target.

    Returns:
        Their numbers, from the root on downwards.
    """
    path: list[int] = []
    for token in tokens.tolist():
        node = tree.children.get(path[-1] if path else -1, {}).get(token)
        if node is None:
            break
        path.append(node)
    return path


def tree_mask(visible: Tensor, past: Tensor) -> Tensor:
    """The mask that is added to the attention scores of a tree's nodes.

    Args:
        visible: (nodes, nodes), boolean.
        past: (length,), what is added for the text before the tree: 0, or the least number for padding.

    Returns:
        (1, 1, nodes, length + nodes), of the dtype of ``past``.
    """
    mask = past.new_zeros(len(visible), len(past) + visible.shape[1])
    mask[:, : len(past)] = past
    mask[:, len(past) :].masked_fill_(~visible, torch.finfo(past.dtype).min)
    return mask[None, None]
