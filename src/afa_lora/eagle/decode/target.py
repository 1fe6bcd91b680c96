"""The target's side of decoding: it reads the prompt, and judges a whole tree in one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from afa_lora.eagle.decode.cache import keep_entries
from afa_lora.eagle.decode.stats import Stopwatch
from afa_lora.eagle.decode.tree import DraftTree, tree_mask


class Verifier:
    """An unmodified target while it decodes one text. Its cache holds the text without its last token.

    Args:
        model: the target.
        cache: its cache, empty.
        attention_mask: (1, prompt), 0 for padding before the prompt; None for none.
        position_ids: (1, prompt); counted from 0 unless given.
        watch: counts the time of the forwards.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: DynamicCache,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        watch: Stopwatch,
    ) -> None:
        self.model, self.cache, self.watch = model, cache, watch
        self.attention_mask, self.position_ids = attention_mask, position_ids
        self.length = 0
        self.position = 0

    def prefill(self, tokens: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
        """Read the prompt.

        Args:
            tokens: (1, prompt).
            chunk: how many tokens at a time; all unless given.

        Returns:
            (prompt, hidden) features, those of padding included, and (vocabulary,) logits after the last token.
        """
        length = tokens.shape[1]
        positions = self.position_ids
        if positions is None:
            positions = torch.arange(length, device=tokens.device)[None]
        parts = []
        for start in range(0, length, chunk or length):
            end = min(start + (chunk or length), length)
            mask = None if self.attention_mask is None else self.attention_mask[:, :end]
            parts.append(self._features(tokens[:, start:end], mask, positions[:, start:end]))
        features = torch.cat(parts)
        self.length, self.position = length, int(positions[0, -1]) + 1
        self.past = torch.zeros(length, dtype=features.dtype, device=features.device)
        if self.attention_mask is not None:
            self.past.masked_fill_(self.attention_mask[0] == 0, torch.finfo(features.dtype).min)
        return features, self._logits(features[-1])

    def verify(self, root: Tensor, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Judge a tree: each node sees the text and its own path, at its own position.

        Args:
            root: (1,), the last token of the text.
            tree: what follows.

        Returns:
            (1 + nodes, hidden) features and (1 + nodes, vocabulary) logits, the root's first.
        """
        visible = tree.visible()
        depths = visible.sum(1) - 1
        tokens = torch.cat((root, tree.tokens))[None]
        features = self._features(tokens, tree_mask(visible, self.past), (depths + self.position)[None])
        return features, self._logits(features)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep of the last tree's entries the given ones in the cache; 0 is the root."""
        keep_entries(self.cache, self.length, rows)
        self.length += len(rows)
        self.position += len(rows)
        self.past = torch.cat((self.past, self.past.new_zeros(len(rows))))

    def _features(self, tokens: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        with self.watch.time("target"):
            output = self.model.base_model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        features: Tensor = output.last_hidden_state[0]
        return features

    def _logits(self, features: Tensor) -> Tensor:
        with self.watch.time("target"):
            logits: Tensor = self.model.get_output_embeddings()(features)
        return logits
