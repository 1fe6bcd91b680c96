"""Tiny targets with their ends and an untrained draft."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make_target(kind: str) -> PreTrainedModel:
    """A tiny target with random weights: ``llama`` (untied head) or ``qwen2`` (biases, tied head)."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=["llama", "qwen2"])
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny target, of either architecture."""
    return make_target(request.param)


@pytest.fixture
def ends(target: PreTrainedModel) -> TargetEnds:
    """What its draft shares with it."""
    return TargetEnds.of(target, "tiny")


@pytest.fixture
def draft(ends: TargetEnds) -> EagleDraft:
    """An untrained draft for it."""
    torch.manual_seed(1)
    return ends.new_draft().eval()
