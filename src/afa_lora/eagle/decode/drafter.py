"""The draft's side of decoding: it reads true features, and proposes a tree below the last token.

It needs no target: with recorded features and tokens it proposes what it would have proposed while decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from afa_lora.core.errors import InvalidSettingError
from afa_lora.eagle.decode import chance
from afa_lora.eagle.decode.cache import keep_entries
from afa_lora.eagle.decode.plan import plan
from afa_lora.eagle.decode.shapes import DynamicTree, Shape, longest_path
from afa_lora.eagle.decode.stats import Stopwatch
from afa_lora.eagle.decode.tree import DraftTree, tree_mask
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds

Process = Callable[[Tensor, Tensor], Tensor]
"""(nodes, depth) tokens below the root and (nodes, vocabulary) logits to (nodes, vocabulary) scores."""


@dataclass(frozen=True)
class _Frontier:
    """Nodes of one depth whose children are to be proposed, at first the root alone.

    Attributes:
        features: (nodes, hidden), the feature predicted at each.
        visible: (nodes, entries), True where an entry of this cycle in the draft's cache is the node or above it.
        paths: (nodes, depth), the tokens below the root.
    """

    features: Tensor
    visible: Tensor
    paths: Tensor


class Drafter:
    """A draft while it decodes one text.

    Its cache holds an entry for each true feature and no other: those of the proposals are dropped with each cycle.

    Args:
        draft: in the dtype and on the device of ``ends``.
        ends: the target's embedding and output layer.
        shape: what to propose.
        sample: draw the proposals of a chain or a static tree from the draft's distribution, without replacement;
            otherwise they are the most probable ones. Those of a dynamic tree are the most probable ones in any case.
        process: applied to the draft's logits.
        watch: counts the time of the forwards; none is counted unless given.

    Raises:
        InvalidSettingError: a node of the shape has more children than there are tokens.
    """

    def __init__(
        self,
        draft: EagleDraft,
        ends: TargetEnds,
        shape: Shape,
        *,
        sample: bool = False,
        process: Process | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        self.draft, self.ends, self.shape = draft, ends, shape
        self.sample, self.process = sample, process
        self.watch = watch
        self.depth = longest_path(shape)
        vocabulary = len(ends.head)
        if not isinstance(shape, DynamicTree) and (width := max(map(max, shape.paths)) + 1) > vocabulary:
            raise InvalidSettingError(f"shape={shape}: {width} children of a node, of a vocabulary of {vocabulary}.")
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        self.cache = DynamicCache()
        self.length = 0
        self._root: Tensor | None = None

    @torch.no_grad()
    def extend(self, features: Tensor, tokens: Tensor) -> None:
        """Read what the target has verified.

        Args:
            features: (n, hidden), true ones at the next n positions.
            tokens: (n,), the token that follows each; the last one is the root of the next tree.
        """
        embeddings = self.ends.embed(tokens)[None]
        with self._timed():
            predicted = self.draft(embeddings, features[None], past_key_values=self.cache)
        self.length += len(tokens)
        self._root = predicted[0, -1:]

    @torch.no_grad()
    def propose(self, room: int | None = None, known: Tensor | None = None) -> DraftTree:
        """Propose what may follow the last token that `extend` was given.

        Args:
            room: the longest path there is room for; that of the shape unless given, and never a longer one.
            known: (any number,), the tokens that will follow, where a record has them. A chain or a static tree ends at
                the depth where it has none of them any more: `accepted_path` is the same, and the draft's forwards for
                what lies deeper are saved.

        Returns:
            The tree; without a node where there is no room.

        Raises:
            RuntimeError: nothing was given to `extend`.
        """
        if self._root is None:
            raise RuntimeError("propose() before extend(): there is no token to follow.")
        room = self.depth if room is None else max(0, min(room, self.depth))
        empty = torch.zeros(0, dtype=torch.long, device=self._root.device)
        if not room:
            return DraftTree(empty, empty, 0)
        start = _Frontier(self._root, self._root.new_zeros(1, 0, dtype=torch.bool), empty[None])
        tree = self._dynamic(start, room) if isinstance(self.shape, DynamicTree) else self._static(start, room, known)
        keep_entries(self.cache, self.length, ())
        return tree

    def _static(self, frontier: _Frontier, room: int, known: Tensor | None) -> DraftTree:
        assert not isinstance(self.shape, DynamicTree)
        assert known is None or not self.sample
        layout = plan(self.shape.paths, room, frontier.features.device)
        tokens: list[Tensor] = []
        distributions: list[Tensor] = []
        right = torch.ones(1, dtype=torch.bool, device=frontier.features.device)  # (frontier's nodes,), as known
        for depth, level in enumerate(layout.levels):
            scores = self._scores(frontier)
            if self.sample:
                distributions.append(scores.softmax(dim=-1))
                proposed = chance.draw_distinct(distributions[-1], level.width)
            else:
                proposed = scores.topk(level.width, dim=-1).indices
            tokens.append(proposed[level.parents, level.ranks])
            if known is not None:
                follows = tokens[-1] == (known[depth] if depth < len(known) else -1)
                right = (right[level.parents] & follows)[level.expanded]
                if not right.any():
                    break
            if len(level.expanded):
                frontier = self._step(frontier, tokens[-1][level.expanded], level.parents[level.expanded])
        return DraftTree(
            tokens=torch.cat(tokens),
            parents=layout.parents[: sum(map(len, tokens))],
            depth=len(tokens),
            probabilities=torch.cat(distributions) if self.sample else None,
            rows=layout.rows if self.sample else (),
        )

    def _dynamic(self, frontier: _Frontier, room: int) -> DraftTree:
        assert isinstance(self.shape, DynamicTree)
        device = frontier.features.device
        width = min(self.shape.top_k, len(self.ends.head))
        above = torch.full((1,), -1, device=device)  # of the frontier's nodes, their numbers among all candidates
        best = frontier.features.new_zeros(1, dtype=torch.float32)  # and the logarithm of their paths' probability
        tokens, scores, parents = [], [], []  # of the candidates, by depth
        count = 0
        for depth in range(1, room + 1):
            top = self._scores(frontier).log_softmax(dim=-1).topk(width, dim=-1)
            path_scores = (best[:, None] + top.values).flatten()
            tokens.append(top.indices.flatten())
            scores.append(path_scores)
            parents.append(above.repeat_interleave(width))
            if depth < room:
                best, chosen = path_scores.topk(min(width, len(path_scores)))
                above = chosen + count
                frontier = self._step(frontier, tokens[-1][chosen], chosen // width)
            count += len(path_scores)
        order = torch.cat(scores).sort(descending=True, stable=True).indices  # a parent before its equal child
        kept = order[: self.shape.total].sort().values
        numbers = torch.full((count + 1,), -1, device=device)
        numbers[kept + 1] = torch.arange(len(kept), device=device)
        return DraftTree(torch.cat(tokens)[kept], numbers[torch.cat(parents)[kept] + 1], room)

    def _step(self, frontier: _Frontier, tokens: Tensor, parents: Tensor) -> _Frontier:
        """Go down to children: (n,) their tokens, (n,) their parents' places in the frontier."""
        itself = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
        visible = torch.cat((frontier.visible[parents], itself), 1)
        paths = torch.cat((frontier.paths[parents], tokens[:, None]), 1)
        position = self.length + frontier.paths.shape[1]
        mask = tree_mask(visible, frontier.features.new_zeros(self.length))
        embeddings = self.ends.embed(tokens)[None]
        positions = torch.full((1, len(tokens)), position, device=tokens.device)
        with self._timed():
            predicted = self.draft(
                embeddings, frontier.features[parents][None], mask, positions, past_key_values=self.cache
            )
        return _Frontier(predicted[0], visible, paths)

    def _timed(self) -> AbstractContextManager[None]:
        return self.watch.time("draft") if self.watch is not None else nullcontext()

    def _scores(self, frontier: _Frontier) -> Tensor:
        """(nodes, vocabulary) processed logits of what follows each node, in float32."""
        with self._timed():
            logits = self.ends.logits(frontier.features)
        scores = logits.float()
        return scores if self.process is None else self.process(frontier.paths, scores)
