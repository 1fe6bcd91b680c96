"""What cannot be decoded with a draft is refused before the first forward."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMode

from afa_lora.core.errors import AfaLoraError
from afa_lora.eagle.model import EagleDraft, check_architecture
from afa_lora.eagle.target import TargetEnds, check_is_of

ATTENTION = ("sdpa", "eager")
"""The implementations of attention that take a mask of 4 dimensions."""

KNOWN_KEYS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
"""What ``generate`` hands over beside the tokens."""


class DecodingError(AfaLoraError, ValueError):
    """A generation that cannot be done with a draft."""


def check_draft(draft: EagleDraft, ends: TargetEnds) -> None:
    """Refuse a draft of another target, and one that takes no tree.

    Raises:
        DraftError: it was trained for another target, or has other shapes than this one.
        DecodingError: its attention takes no mask of a tree.
    """
    check_is_of(draft, ends)
    _check_attention(draft, "draft")


def check_target(model: PreTrainedModel, name: str) -> None:
    """Refuse a target that cannot verify a tree.

    Raises:
        DraftError: its architecture has no draft here.
        DecodingError: its attention or its positions do not allow it, or it is spread over devices.
    """
    config = model.config
    check_architecture(config, name)
    _check_attention(model, "target")
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if any(kind != "full_attention" for kind in kinds) if kinds else window is not None:
        raise DecodingError(
            f"sliding_window={window}: the target's layers see a window of the text, which a tree's mask does not. "
            "Load it with sliding_window=None if no text is longer than the window, or decode without a draft."
        )
    if (kind := (config.rope_parameters or {}).get("rope_type")) == "longrope":
        raise DecodingError(f"rope_type={kind!r}: its positions change with the length. Decode without a draft.")
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1 or "meta" in {device.type for device in devices}:
        raise DecodingError(
            f"The target's weights are on {' and '.join(sorted(map(str, devices)))}. Load it on one device."
        )


def check_generation(config: GenerationConfig, input_ids: Tensor, given: dict[str, Any]) -> None:
    """Refuse a way to generate other than greedy decoding or sampling of one text.

    Args:
        config: as ``generate`` prepared it.
        input_ids: (texts, length).
        given: what ``generate`` hands over beside the tokens.

    Raises:
        DecodingError: one clear line.
    """
    if given.get("inputs_embeds") is not None:
        raise DecodingError("inputs_embeds: the draft reads tokens. Give input_ids.")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise DecodingError(
            f"num_beams={config.num_beams} and the like ask for {mode.value.replace('_', ' ')}. A draft decodes "
            "greedily or samples: set num_beams=1, and do_sample as you like."
        )
    if len(input_ids) != 1:
        raise DecodingError(
            f"{len(input_ids)} texts at a time: a draft decodes one. Call generate for each, and set "
            "num_return_sequences=1."
        )
    for key in ("output_attentions", "output_hidden_states"):
        if getattr(config, key, False):
            raise DecodingError(f"{key}=True: a tree's are not those of its text. Leave it out.")
    further = {key for key, value in given.items() if value is not None and value is not False} - KNOWN_KEYS
    if further:
        raise DecodingError(f"{', '.join(sorted(further))}: not handed on while decoding with a draft. Leave it out.")


def check_cache(cache: Cache | None, use_cache: bool | None) -> DynamicCache:
    """The target's cache, if its entries can be picked out.

    Raises:
        DecodingError: there is none, or another kind, or it already holds something.
    """
    if cache is None or use_cache is False:
        raise DecodingError("use_cache=False: verification needs the target's cache. Leave it out.")
    kinds: set[type | None] = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    if type(cache) is not DynamicCache or kinds != {DynamicLayer} or cache.offloading:
        names = sorted(kind.__name__ for kind in kinds if kind is not None)
        name = f"{type(cache).__name__} of {', '.join(names)}{', offloaded' if cache.offloading else ''}"
        raise DecodingError(
            f"The cache is a {name}, from which refused tokens cannot be taken back. Leave out cache_implementation "
            "and past_key_values, or give a DynamicCache()."
        )
    if length := cache.get_seq_length():
        raise DecodingError(
            f"past_key_values holds {length} tokens already, whose features the draft has not seen. Give the whole "
            "text with an empty cache."
        )
    return cache


def _check_attention(model: PreTrainedModel, role: str) -> None:
    if (kind := model.config._attn_implementation) not in ATTENTION:
        raise DecodingError(
            f"The {role} has attn_implementation={kind!r}, which takes no mask of a tree. Load it with "
            "attn_implementation='sdpa'."
        )
