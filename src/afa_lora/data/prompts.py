"""Prompts for reinforcement learning: those that are short enough, in the form that TRL's `GRPOTrainer` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from jinja2 import TemplateError

from afa_lora.data.records import DataError, Items, Sample, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # prompts tokenized at a time
TUPLE = "__tuple__"  # the key under which a packed record holds a tuple


def drop_long(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, limit: int) -> tuple[list[Sample], int]:
    """Take out the samples whose prompt is longer than ``limit`` tokens, chat template and generation prompt included.

    Returns:
        The others in their order, and how many were dropped.

    Raises:
        DataError: the chat template refuses a prompt, or every prompt is too long.
    """
    lengths = prompt_lengths(samples, tokenizer)
    kept = [sample for sample, length in zip(samples, lengths, strict=True) if length <= limit]
    if samples and not kept:
        raise DataError(
            f"None of the {counted(len(samples), 'prompt(s)')} fits into max_prompt_length={limit}: the shortest has "
            f"{min(lengths)} tokens, the longest {max(lengths)}. Raise max_prompt_length, or take shorter prompts."
        )
    return kept, len(samples) - len(kept)


def drop_long_items(items: Items, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> tuple[Items, int, int]:
    """`drop_long` of the items to train on and of those to test on; without a limit all stay.

    Returns:
        The others, and how many were dropped of each.
    """
    if limit is None:
        return items, 0, 0
    train, dropped = drop_long(items.train, tokenizer, limit)
    test, not_tested = drop_long(items.test, tokenizer, limit)
    return Items(train, test), dropped, not_tested


def prompt_lengths(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The length of each prompt in tokens, as the model gets it before it answers.

    Raises:
        DataError: the chat template refuses a prompt.
    """
    lengths: list[int] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        try:
            prompts: list[list[Any]] = [list(sample.prompt) for sample in batch]
            tokens: Any = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            raise DataError(_refused(batch, tokenizer, error)) from error
        lengths += map(len, tokens["input_ids"])
    return lengths


def to_prompt_dataset(samples: Sequence[Sample]) -> Dataset:
    """The samples in TRL's conversational prompt-only form, with what reward functions need beside it.

    The columns are ``prompt``, messages; ``answer``, the right answer's text; and ``entry``, the record by
    `pack_entry`.

    Raises:
        DataError: a record holds something that JSON has no form for.
    """
    return Dataset.from_dict(
        {
            "prompt": [list(sample.prompt) for sample in samples],
            "answer": [sample.completion for sample in samples],
            "entry": [pack_entry(sample.entry) for sample in samples],
        }
    )


def pack_entry(entry: Mapping[str, Any]) -> str:
    """A record as JSON text. Tuples are marked, for scorers of reasoning-gym tell them from lists.

    Raises:
        DataError: the record holds something that JSON has no form for, or a key that is no text.
    """
    try:
        return json.dumps(_mark(dict(entry)))
    except TypeError as error:
        raise DataError(
            f"The record with the columns {', '.join(map(repr, entry))} is no JSON: {error}. "
            "Make that value a text or a number, or leave its column out."
        ) from error


def unpack_entry(text: str) -> dict[str, Any]:
    """The record that `pack_entry` made a text of."""
    entry: dict[str, Any] = json.loads(text, object_hook=lambda found: tuple(found[TUPLE]) if TUPLE in found else found)
    return entry


def _mark(value: Any) -> Any:
    if isinstance(value, tuple):
        return {TUPLE: [_mark(item) for item in value]}
    if isinstance(value, list):
        return [_mark(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):  # json.dumps would make a text of a number, and say nothing
                raise TypeError(f"the key {key!r} is no text")
        return {key: _mark(item) for key, item in value.items()}
    return value


def _refused(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, error: TemplateError) -> str:
    """Name the prompt at which a chat template raised."""
    for sample in samples:
        try:
            tokenizer.apply_chat_template(list(sample.prompt), tokenize=False, add_generation_prompt=True)
        except TemplateError:
            break
    roles = ", ".join(message["role"] for message in sample.prompt)
    return (
        f"The model's chat template refuses the prompt {sample.prompt[-1]['content'][:80]!r}: {error}. "
        f"Its messages are of the roles {roles}. Take the item out, or change its messages."
    )
