"""What cannot be decoded with a draft is refused, and the message says why and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from afa_lora.eagle.decode import Chain, DecodingError, SpeculativeDecoding
from afa_lora.eagle.model import DraftError, EagleConfig, EagleDraft
from afa_lora.eagle.target import TargetEnds
from tests.eagle.conftest import SHAPE, make_target

PROMPT = torch.tensor([[5, 17, 3]])


@pytest.fixture
def target() -> PreTrainedModel:
    """One target is enough for messages."""
    return make_target("llama")


def generate(target: PreTrainedModel, draft: EagleDraft | None = None, **options: Any) -> Any:
    """Decode with a draft that fits, unless another is given."""
    draft = draft or TargetEnds.of(target, "tiny").new_draft().eval()
    given = {"inputs": PROMPT, "max_new_tokens": 4, "do_sample": False, **options}
    return target.generate(custom_generate=SpeculativeDecoding(draft, Chain(2)), **given)


def filled_cache(target: PreTrainedModel) -> DynamicCache:
    """The cache of a text before."""
    cache = DynamicCache()
    with torch.no_grad():
        target(PROMPT[:, :2], past_key_values=cache)
    return cache


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several texts": ({"inputs": PROMPT.repeat(2, 1)}, "2 texts at a time.*Call generate for each"),
    "several answers": ({"num_return_sequences": 2, "do_sample": True}, "2 texts at a time"),
    "beams": ({"num_beams": 3}, "num_beams=3.*beam search.*set num_beams=1"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "ask for assisted generation"),
    "embeddings": ({"inputs": None, "inputs_embeds": torch.zeros(1, 3, 32)}, "inputs_embeds.*Give input_ids"),
    "no cache": ({"use_cache": False}, "use_cache=False.*Leave it out"),
    "static cache": ({"cache_implementation": "static"}, "StaticCache of StaticLayer.*Leave out cache_implementation"),
    "offloaded cache": ({"cache_implementation": "offloaded"}, "DynamicCache of DynamicLayer, offloaded"),
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions=True"),
    "states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states=True"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(target: PreTrainedModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        generate(target, **options)


def test_a_cache_that_holds_something(target: PreTrainedModel) -> None:
    with pytest.raises(DecodingError, match=r"holds 2 tokens already.*Give the whole text"):
        generate(target, past_key_values=filled_cache(target))


def test_further_arguments(target: PreTrainedModel) -> None:
    draft = TargetEnds.of(target, "tiny").new_draft()
    decoding = SpeculativeDecoding(draft, Chain(2))
    prepared: dict[str, Any] = {}

    def catch(model: Any, input_ids: Any, **given: Any) -> Any:
        prepared.update(given, input_ids=input_ids)
        return input_ids

    target.generate(PROMPT, max_new_tokens=4, custom_generate=catch)
    with pytest.raises(DecodingError, match="token_type_ids: not handed on"):
        decoding(target, **prepared, token_type_ids=torch.zeros_like(PROMPT))
    assert decoding(target, **prepared).shape == (1, 7)


def test_attention_without_a_mask_of_four_dimensions(target: PreTrainedModel) -> None:
    draft = TargetEnds.of(target, "tiny").new_draft()
    target.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DecodingError, match=r"target has attn_implementation='flash_attention_2'.*'sdpa'"):
        generate(target, draft)
    target.config._attn_implementation = "sdpa"
    draft.config._attn_implementation = "flex_attention"
    with pytest.raises(DecodingError, match="draft has attn_implementation='flex_attention'"):
        generate(target, draft)


@pytest.mark.parametrize(
    "target",
    [
        MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
        Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    ],
    ids=["mistral", "qwen2"],
)
def test_a_sliding_window(target: PreTrainedModel) -> None:
    with pytest.raises(DecodingError, match=r"sliding_window=4.*sliding_window=None"):
        generate(target.eval())


def test_mistral_without_a_window_decodes() -> None:
    torch.manual_seed(0)
    target = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)).double().eval()
    options = {"inputs": PROMPT, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    assert torch.equal(generate(target, **options), target.generate(**options))


def test_positions_that_change_with_the_length(target: PreTrainedModel) -> None:
    draft = TargetEnds.of(target, "tiny").new_draft()
    target.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 10000.0}
    with pytest.raises(DecodingError, match="rope_type='longrope'"):
        generate(target, draft)


def test_an_architecture_without_drafts(target: PreTrainedModel) -> None:
    draft = TargetEnds.of(target, "tiny").new_draft()
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20))
    with pytest.raises(DraftError, match=r"'gpt2'.*llama, qwen2"):
        generate(gpt2, draft)


def test_a_target_over_several_devices(target: PreTrainedModel) -> None:
    draft = TargetEnds.of(target, "tiny").new_draft()
    decoding = SpeculativeDecoding(draft, Chain(2))
    target.model.layers[1].mlp.to("meta")  # neither the first nor the last of its weights
    with pytest.raises(DecodingError, match=r"on cpu and meta. Load it on one device"):
        target.generate(PROMPT, max_new_tokens=4, custom_generate=decoding)


def test_a_draft_for_another_target(target: PreTrainedModel) -> None:
    other = make_target("llama")
    torch.nn.init.normal_(other.model.norm.weight)
    with pytest.raises(DraftError, match=r"trained for another target, other.*train a draft for this one"):
        generate(target, TargetEnds.of(other, "other").new_draft())


@pytest.mark.parametrize("settings", [{"hidden_size": 64}, {"vocab_size": 100}], ids=str)
def test_a_draft_of_other_shapes_that_remembers_no_target(target: PreTrainedModel, settings: dict[str, int]) -> None:
    draft = EagleDraft(EagleConfig.of_target(LlamaConfig(**{**SHAPE, **settings}), "other", "")).eval()
    draft.config.target_digest = None
    ((key, value),) = settings.items()
    with pytest.raises(DraftError, match=f"{key}: the draft has {value}, .* has {SHAPE[key]}"):
        generate(target, draft)
