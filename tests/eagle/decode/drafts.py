"""Drafts whose quality is known, plain generation to compare with, and the shapes that are tried."""

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from afa_lora.eagle.decode import Chain, DynamicTree, StaticTree
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds, features_of

SHAPES = [Chain(4), StaticTree(), DynamicTree(total=20, depth=4, top_k=4)]


class ToldDraft(EagleDraft):
    """A draft that is told which features to predict; its cache is that of a real one."""

    told: Tensor
    """(positions, hidden)."""

    def forward(self, embeddings: Tensor, features: Tensor, *masks: Any, **kwargs: Any) -> Tensor:
        past = kwargs["past_key_values"].get_seq_length()
        positions = masks[1] if len(masks) > 1 else torch.arange(past, past + embeddings.shape[1])[None]
        super().forward(embeddings, features, *masks, **kwargs)
        return self.told[(positions + 1).clamp(max=len(self.told) - 1)]


def told(ends: TargetEnds, features: Tensor) -> ToldDraft:
    """A draft that predicts the given (positions, hidden) features."""
    draft = ToldDraft(ends.new_draft().config).to(features.dtype).eval()
    draft.told = features
    return draft


def make_draft(kind: str, target: PreTrainedModel, text: Tensor) -> EagleDraft:
    """A ``random`` one; for the (1, length) text a ``perfect`` one that is sure of it, or an ``adversarial`` one, which
    finds the least likely tokens the likeliest."""
    ends = TargetEnds.of(target, "tiny")
    torch.manual_seed(1)
    if kind == "random":
        return ends.new_draft(target.dtype).eval()
    features = features_of(target, text)[0]
    return told(ends, 30 * features if kind == "perfect" else -30 * features)


def greedy(target: PreTrainedModel, prompt: Tensor, new: int = 23, **options: Any) -> Tensor:
    """Plain greedy generation; ends at no token unless given."""
    given = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, **options}
    output: Tensor = target.generate(prompt, **given)
    return output


def small_target(vocabulary: int) -> PreTrainedModel:
    """A target of few tokens, in float64, whose next token depends on the whole text."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).double().eval()
    model.lm_head.weight.data *= 0.5  # so that no token is nearly certain
    return model
