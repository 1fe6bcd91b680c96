"""How long the items are in tokens, and what TRL's `SFTTrainer` makes of those that are too long.

The rules are those of `SFTTrainer._prepare_dataset` and `trl.pack_dataset` in TRL 1.16.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow
from datasets import Dataset
from jinja2 import TemplateError

from afa_lora.data.records import DataError, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig

BATCH = 1000  # items tokenized at a time

Split = Literal["training", "test"]


@dataclass(frozen=True)
class ItemLength:
    """One item in tokens.

    Attributes:
        tokens: prompt and completion, with what the chat template puts around them.
        first: the position of the first token that the loss is on.
        last: the position of the last one.
    """

    tokens: int
    first: int
    last: int


@dataclass(frozen=True)
class LengthReport:
    """The lengths of a list of items, in tokens.

    Attributes:
        split: what the items are for, ``training`` or ``test``.
        items: how many there are.
        tokens: all of them, uncut.
        shortest, median, percentile_95, longest: of the uncut lengths; 95 % of the items are at most the third.
        max_length: the limit; ``None`` is none.
        packing: the packing strategy, ``None`` without packing.
        cut: items of which a part is lost.
        dropped: items with no completion token within ``max_length``. TRL drops them; with packing it keeps them, and
            nothing is learnt from them.
        rows: the sequences that remain, after packing if there is any.
        row_tokens: the tokens in all rows: what one epoch computes, padding aside.
    """

    split: Split
    items: int
    tokens: int
    shortest: int
    median: float
    percentile_95: int
    longest: int
    max_length: int | None
    packing: str | None
    cut: int
    dropped: int
    rows: int
    row_tokens: int

    def __str__(self) -> str:
        s = "" if self.items == 1 else "s"
        lines = [
            f"{self.items:,} {self.split} item{s}, {self.tokens:,} tokens: {self.shortest:,} to {self.longest:,} "
            f"an item, median {self.median:,.10g}, 95 % at most {self.percentile_95:,}."
        ]
        if self.max_length is None:
            lines.append("There is no max_length: none is cut.")
        elif self.longest <= self.max_length:
            lines.append(f"None is longer than max_length {self.max_length:,}.")
        elif self.packing not in (None, "bfd"):
            lines.append(f"Those longer than max_length {self.max_length:,} go on in another row; none is cut.")
        else:
            lines.append(
                f"{self._dropped()}{self.cut:,} {'is' if self.cut == 1 else 'are'} cut to {self.max_length:,}."
            )
        if self.packing is not None:
            lines.append(f"They are packed into {self.rows:,} rows ({self.packing}).")
        return "\n".join(lines)

    def _dropped(self) -> str:
        if not self.dropped:
            return ""
        have, are, them = ("has", "is", "it") if self.dropped == 1 else ("have", "are", "them")
        end = f"{are} dropped" if self.packing is None else f"nothing is learnt from {them}"
        return (
            f"{self.dropped:,} of {self.items:,} {self.split} items {have} no completion token within max_length "
            f"{self.max_length:,} and {end}, "
        )


def measure_lengths(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    args: SFTConfig,
    split: Split = "training",
    advance: Callable[[int], None] = lambda count: None,
) -> LengthReport:
    """Tokenize items as TRL will, and count what its ``max_length`` cuts and drops.

    Args:
        samples: at least one item.
        tokenizer: with the chat template that the trainer will use; ``args.chat_template_path`` is not read.
        args: gives ``max_length``, ``truncation_mode``, ``packing`` and what the loss is on.
        split: ``test`` packs by ``eval_packing``.
        advance: told after each batch how many items it had.

    Raises:
        DataError: the chat template refuses an item, or no item has a completion token within ``max_length``.
    """
    items = item_lengths(samples, tokenizer, args, advance)
    packing = args.packing_strategy if _packs(args, split) else None
    rows = row_lengths(items, args, split)
    lengths = sorted(item.tokens for item in items)
    limit = args.max_length if packing in (None, "bfd") and args.max_length is not None else lengths[-1]
    keep_end = packing is None and args.truncation_mode == "keep_end"
    learnt = [item for item in items if _learnt(item, limit, keep_end)]
    if not learnt:
        raise DataError(_all_too_long(items, limit, split, keep_end))
    return LengthReport(
        split=split,
        items=len(items),
        tokens=sum(lengths),
        shortest=lengths[0],
        median=statistics.median(lengths),
        percentile_95=lengths[-(-95 * len(lengths) // 100) - 1],
        longest=lengths[-1],
        max_length=args.max_length,
        packing=packing,
        cut=sum(item.tokens > limit for item in learnt),
        dropped=len(items) - len(learnt),
        rows=len(rows),
        row_tokens=sum(rows),
    )


def item_lengths(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    args: SFTConfig,
    advance: Callable[[int], None] = lambda count: None,
) -> list[ItemLength]:
    """The length of each item, and where in it the loss is.

    Raises:
        DataError: the chat template refuses an item.
    """
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    # With assistant_only_loss TRL needs marks in the template, and brings its own template where they are missing.
    marked = not args.assistant_only_loss or has_generation_markers(tokenizer.chat_template)
    template = None if marked else get_training_chat_template(tokenizer)
    lengths: list[ItemLength] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        try:
            lengths += _tokenize(batch, tokenizer, args, template)
        except TemplateError as error:
            raise DataError(_refused(batch, tokenizer, template, error)) from error
        advance(len(batch))
    return lengths


def row_lengths(items: Sequence[ItemLength], args: SFTConfig, split: Split = "training") -> list[int]:
    """The length of each row that the trainer will see, in its order unless ``shuffle_dataset`` is set."""
    if args.max_length is None:
        return [item.tokens for item in items]
    if not _packs(args, split):
        limit, keep_end = args.max_length, args.truncation_mode == "keep_end"
        return [min(item.tokens, limit) for item in items if _learnt(item, limit, keep_end)]
    from trl import pack_dataset

    lengths = [item.tokens for item in items]
    offsets = pyarrow.array(np.cumsum([0, *lengths]), pyarrow.int64())
    ids = pyarrow.LargeListArray.from_arrays(offsets, np.zeros(sum(lengths), np.int8))
    dataset = Dataset(pyarrow.table({"input_ids": ids}))
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    # An iterable data set packs the same batches, and leaves neither a cache nor a progress bar behind.
    return [
        len(row["input_ids"])
        for row in pack_dataset(dataset.to_iterable_dataset(), args.max_length, args.packing_strategy)
    ]


def _tokenize(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, args: SFTConfig, template: str | None
) -> list[ItemLength]:
    from trl.data_utils import common_prefix_length

    prompts: list[list[Any]] = [list(sample.prompt) for sample in samples]
    wholes = [[*sample.prompt, {"role": "assistant", "content": sample.completion}] for sample in samples]
    options: dict[str, Any] = {"return_dict": True, "chat_template": template}
    asked: Any = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **options)
    options["return_assistant_tokens_mask"] = args.assistant_only_loss
    full: Any = tokenizer.apply_chat_template(wholes, **options)
    lengths = []
    for i, (prompt, whole) in enumerate(zip(asked["input_ids"], full["input_ids"], strict=True)):
        start = 0 if args.completion_only_loss is False else common_prefix_length(prompt, whole)
        with_loss: Sequence[int] = range(start, len(whole))
        if args.assistant_only_loss:
            with_loss = [position for position in with_loss if full["assistant_masks"][i][position]]
        # An item without any such token has its loss beyond its end, out of reach of every max_length.
        first, last = (with_loss[0], with_loss[-1]) if with_loss else (len(whole), -1)
        lengths.append(ItemLength(len(whole), first, last))
    return lengths


def _refused(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, template: str | None, error: TemplateError
) -> str:
    """Name the item at which a chat template raised."""
    for sample in samples:
        messages = [*sample.prompt, {"role": "assistant", "content": sample.completion}]
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
        except TemplateError:
            break
    roles = ", ".join(message["role"] for message in messages)
    return (
        f"The model's chat template refuses the item that asks {sample.prompt[-1]['content'][:80]!r}: {error}. "
        f"Its messages are of the roles {roles}. Take the item out, or change its messages."
    )


def _packs(args: SFTConfig, split: Split) -> bool:
    return bool(args.packing if split == "training" or args.eval_packing is None else args.eval_packing)


def _learnt(item: ItemLength, limit: int, keep_end: bool) -> bool:
    """Whether a token that the loss is on is left when the item is cut."""
    if keep_end:
        return item.last >= max(item.tokens - limit, 0)
    return item.first < min(limit, item.tokens)


def _all_too_long(items: Sequence[ItemLength], limit: int, split: Split, keep_end: bool) -> str:
    least = min(item.tokens - item.last if keep_end else item.first + 1 for item in items)
    longest = max(item.tokens for item in items)
    return (
        f"train.max_length={limit} is too small: none of the {len(items)} {split} items has a completion "
        f"token within it. The first one has with {least}; {longest} cuts none."
    )
