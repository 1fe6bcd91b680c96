"""Decoding with a draft: ``target.generate(inputs, custom_generate=SpeculativeDecoding(draft, shape))``.

A cycle: the draft proposes a tree below the last token, the target reads it in one forward, and what token-by-token
generation would have done is done along the tree for as long as it follows a proposal.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from afa_lora.eagle.decode.checks import check_cache, check_draft, check_generation, check_target
from afa_lora.eagle.decode.drafter import Drafter
from afa_lora.eagle.decode.output import Output, streamer_of_generate
from afa_lora.eagle.decode.processors import DraftProcess
from afa_lora.eagle.decode.sampling import sample
from afa_lora.eagle.decode.shapes import DynamicTree, Shape
from afa_lora.eagle.decode.stats import DecodingStats, Stopwatch
from afa_lora.eagle.decode.target import Verifier
from afa_lora.eagle.decode.tree import DraftTree
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds


class SpeculativeDecoding:
    """A decoding loop for ``custom_generate``, lossless: greedy output is the target's own greedy output, sampled
    output has the target's own distribution.

    Args:
        draft: trained for the target. Where it is not in the target's dtype and on its device, a copy that is gets
            made, and kept until the draft changes.
        shape: what to propose in a cycle.

    Attributes:
        last: how the last generation went.

    ``generate`` applies ``stop_strings`` to no ``custom_generate``; give the criterion itself instead:
    ``stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)]``.
    """

    def __init__(self, draft: EagleDraft, shape: Shape = DynamicTree()) -> None:  # noqa: B008 (frozen)
        self.draft = draft
        self.shape = shape
        self.last = DecodingStats()
        self._copy: tuple[tuple[object, ...], EagleDraft] | None = None

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Generate; called by ``generate`` with what it prepared.

        Returns:
            What ``generate`` returns: (1, length) tokens, or a dictionary of them.

        Raises:
            DecodingError: this cannot be done with a draft.
            DraftError: the draft is of another target, or the target of an architecture without drafts.
        """
        check_generation(generation_config, input_ids, model_kwargs)
        name = model.config.name_or_path or "the target"
        check_target(model, name)
        ends = TargetEnds.of(model, name)
        check_draft(self.draft, ends)
        cache = check_cache(model_kwargs.get("past_key_values"), model_kwargs.get("use_cache"))
        watch = Stopwatch(ends.embedding.device)
        streamer = streamer_of_generate() if streamer is None else streamer
        output = Output(input_ids, logits_processor, stopping_criteria, generation_config, streamer)
        process = DraftProcess(logits_processor)
        sampled = bool(generation_config.do_sample)
        drafter = Drafter(self._fitted(ends.embedding), ends, self.shape, sample=sampled, process=process, watch=watch)
        attention_mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
        verifier = Verifier(model, cache, attention_mask, positions, watch)
        run = _Generation(drafter, verifier, output, process, sampled, _limit(model, generation_config))
        self.last = run.run(generation_config.prefill_chunk_size, watch)
        return output.finish(cache)

    def _fitted(self, like: Tensor) -> EagleDraft:
        """The draft in the target's dtype, on its device."""
        if self.draft.dtype == like.dtype and self.draft.device == like.device:
            return self.draft
        weights = tuple(self.draft.parameters())
        versions = tuple(
            0 if weight.is_inference() else weight._version for weight in weights
        )  # counts changes in place
        state = (self.draft, like.dtype, like.device, versions, tuple(map(id, weights)))
        if self._copy is None or self._copy[0] != state:
            fitted: EagleDraft = copy.deepcopy(self.draft).to(like.device, like.dtype)  # type: ignore[arg-type]
            self._copy = (state, fitted)
        return self._copy[1]


def room_left(length: int, max_length: int, position: int, positions: int) -> int:
    """The longest path that a tree may have so that a cycle can use all of it.

    Args:
        length: of the text, its last token, the tree's root, included.
        max_length: of the text.
        position: of the root.
        positions: how many the target has.
    """
    return max(0, min(max_length - length - 1, positions - position - 1))


def _limit(model: PreTrainedModel, config: GenerationConfig) -> tuple[int, int]:
    """The most tokens of the text, and the most positions."""
    assert config.max_length is not None  # `generate` has set it
    return config.max_length, model.config.max_position_embeddings


class _Generation:
    """The loop over one text."""

    def __init__(
        self,
        drafter: Drafter,
        verifier: Verifier,
        output: Output,
        process: DraftProcess,
        sampled: bool,
        limit: tuple[int, int],
    ) -> None:
        self.drafter, self.verifier, self.output, self.process = drafter, verifier, output, process
        self.sampled, self.limit = sampled, limit

    def run(self, chunk: int | None, watch: Stopwatch) -> DecodingStats:
        """Generate until a criterion stops it."""
        stats = DecodingStats()
        self._prefill(chunk)
        stats.prefill_seconds = watch.elapsed()[0]
        watch.start()
        while not self.output.stopped:
            stats.accepted.append(self._cycle())
        whole, stats.target_seconds, stats.draft_seconds = watch.elapsed()
        stats.other_seconds = whole - stats.target_seconds - stats.draft_seconds
        return stats

    def _prefill(self, chunk: int | None) -> None:
        output, verifier = self.output, self.verifier
        features, logits = verifier.prefill(output.text, chunk)
        empty = DraftTree(output.text.new_zeros(0), output.text.new_zeros(0), 0)
        self._follow(empty, logits[None])
        if not output.stopped:
            following = output.text[0, 1:]
            if verifier.attention_mask is not None:  # the draft reads no padding
                real = verifier.attention_mask[0].bool()
                features, following = features[real], following[real]
            self.drafter.extend(features, following)

    def _cycle(self) -> int:
        """Propose, verify, keep; returns how many draft tokens were kept."""
        output, verifier = self.output, self.verifier
        self.process.text = output.text
        room = room_left(output.text.shape[1], self.limit[0], verifier.position, self.limit[1])
        tree = self.drafter.propose(room)
        features, logits = verifier.verify(output.text[0, -1:], tree)
        nodes, followed = self._follow(tree, logits)
        rows = [0, *(node + 1 for node in nodes)]
        if followed:  # the text ends in a draft token, which the cache does not hold, as it would not without a draft
            rows.pop()
        verifier.keep(rows)
        if not output.stopped:
            self.drafter.extend(features[torch.tensor(rows, device=features.device)], output.text[0, -len(rows) :])
        return len(nodes)

    def _follow(self, tree: DraftTree, logits: Tensor) -> tuple[list[int], bool]:
        """Add token after token for as long as the tree has them, and one more.

        Args:
            tree: what was proposed.
            logits: (1 + nodes, vocabulary), the target's, the root's first.

        Returns:
            The numbers of the nodes that were added, and whether the last token that was added is one of them.
        """
        output = self.output
        likeliest = logits.float().argmax(-1).tolist() if output.plain and not self.sampled else None
        nodes: list[int] = []
        node: int | None = -1
        while node is not None and not output.stopped:
            token = likeliest[node + 1] if likeliest else self._choose(output.process(logits[node + 1]), tree, node)
            output.add(token)
            node = tree.children.get(node, {}).get(token)
            if node is not None:
                nodes.append(node)
        return nodes, node is not None

    def _choose(self, scores: Tensor, tree: DraftTree, node: int) -> int:
        return sample(scores, tree, node) if self.sampled else int(scores.argmax())
