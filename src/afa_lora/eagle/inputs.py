"""What features are computed from: the conversations as the target reads them, and the dtype that it computes in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from afa_lora.data.records import DataError
from afa_lora.eagle.conversations import Conversation, load_conversations
from afa_lora.eagle.recipe import Recipe
from afa_lora.models import ModelError, hardware_dtype, read_parts
from afa_lora.settings import RecipeError
from afa_lora.tuning.loading import training_device


def target_dtype(recipe: Recipe) -> torch.dtype:
    """What the target is kept and computes in: ``load.dtype`` or, left open, what the hardware computes in.

    The draft's own weights are float32 whatever it says.

    Raises:
        RecipeError: float16 on a CPU.
    """
    device = training_device(recipe)
    if recipe.load.dtype == "auto":
        return hardware_dtype(device)[0]
    if recipe.load.dtype == "float16" and device == "cpu":
        raise RecipeError("load.dtype=float16 needs a GPU. On this CPU use float32 or bfloat16.")
    dtype: torch.dtype = getattr(torch, recipe.load.dtype)
    return dtype


def target_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The target's tokenizer.

    Raises:
        ModelError: there is no such model, or it has none.
    """
    tokenizer = read_parts(recipe.model).tokenizer
    if tokenizer is None:
        raise ModelError(
            f"model={recipe.model!r} has no tokenizer, so conversations cannot be read. Copy its files too."
        )
    return tokenizer


def read_conversations(
    recipe: Recipe, target: PretrainedConfig, say: Callable[[str], None]
) -> tuple[list[Conversation], list[Conversation]]:
    """Those to train on and those to test on, which the target can read.

    Args:
        recipe: its ``model`` and ``data`` are read.
        target: its configuration.
        say: as for `load_conversations`.

    Raises:
        DataError: as `load_conversations`, or one is longer than the target reads.
    """
    train, test = load_conversations(recipe.data, target_tokenizer(recipe), say)
    longest, most = max(map(len, train + test)), target.max_position_embeddings
    if longest > most:
        raise DataError(
            f"data.max_length={recipe.data.max_length}: the longest conversation has {longest} tokens, and "
            f"model={recipe.model!r} reads at most {most}. Set data.max_length={most} or less."
        )
    return train, test
