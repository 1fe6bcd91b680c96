"""What a draft is trained on: features that were written before, or a target that runs along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from afa_lora.eagle.alignment import counts
from afa_lora.eagle.conversations import ConversationDataset, data_fingerprint
from afa_lora.eagle.features import FeatureError, FeatureStore
from afa_lora.eagle.features.index import SPLITS
from afa_lora.eagle.inputs import read_conversations, target_dtype, target_tokenizer
from afa_lora.eagle.model import EagleDraft, find_draft, load_draft
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.target import TargetEnds, check_is_of
from afa_lora.eagle.templates import marked_template
from afa_lora.models import load_model
from afa_lora.tuning.checks import reporting_faults
from afa_lora.tuning.trainer import is_sharded

DraftData = FeatureStore | ConversationDataset


@dataclass(frozen=True)
class Sources:
    """The data of a training.

    Attributes:
        train: items as `afa_lora.eagle.alignment.collate` takes them.
        test: the same, held out; ``None`` if there are none.
        facts: counts and fingerprints, for the run's provenance.
    """

    train: DraftData
    test: DraftData | None
    facts: dict[str, Any]


def open_sources(recipe: Recipe, ends: TargetEnds, say: Callable[[str], None]) -> Sources:
    """Open the recipe's features or, if it keeps none, read its conversations.

    Args:
        recipe: its ``data`` and ``features`` are read.
        ends: of the target.
        say: takes a line for each thing that is read.

    Raises:
        AfaLoraError: there are no features, or they are of another target, other data or damaged; a conversation
            cannot be read.
    """
    folder = recipe.features.folder
    if folder is None:
        return _conversations(recipe, ends, say)
    train, test = (FeatureStore.open(folder, split, ends) for split in SPLITS)
    train.check(recipe, say)
    _check_template(recipe, train)
    say(f"Features of {len(train):,} conversations to train on and {len(test):,} to test on, from {folder}.")
    facts = {"train_items": len(train), "test_items": len(test), "train_fingerprint": train.digest}
    return Sources(train, test if len(test) else None, facts)


def _check_template(recipe: Recipe, store: FeatureStore) -> None:
    digest = marked_template(target_tokenizer(recipe), recipe.data.chat_template).digest
    if digest != store.fingerprint["chat_template"]:
        raise FeatureError(
            f"features.folder={str(store.folder)!r} holds features of conversations in another chat template than that "
            "of this model or of data.chat_template. Give the same one, or write features into another folder."
        )


def _conversations(recipe: Recipe, ends: TargetEnds, say: Callable[[str], None]) -> Sources:
    train, test = read_conversations(recipe, ends.config, say)
    facts = {"train_items": len(train), "test_items": len(test), "train_fingerprint": data_fingerprint(train, test)}
    return Sources(ConversationDataset(train), ConversationDataset(test) if test else None, facts)


def running_target(recipe: Recipe, say: Callable[[str], None]) -> PreTrainedModel | None:
    """The target, frozen, if it has to run along; it is on the CPU.

    Args:
        recipe: its ``model``, ``load`` and ``features`` are read.
        say: takes a line if something takes long.

    Raises:
        ModelError: it cannot be loaded.
    """
    if recipe.features.folder is not None:
        return None
    target, _ = load_model(recipe.model, report=say, dtype=target_dtype(recipe))
    return target.requires_grad_(False).eval()


def first_draft(recipe: Recipe, ends: TargetEnds, dtype: torch.dtype) -> EagleDraft:
    """The draft that the training begins with: a new one, or the recipe's ``start``.

    Raises:
        DraftError: ``start`` is no draft, or one for another target.
    """
    if recipe.start is None:
        return ends.new_draft(dtype)
    draft = load_draft(find_draft(recipe.start), dtype=dtype)
    check_is_of(draft, ends)
    draft.config.target_name, draft.config.target_digest = ends.name, ends.digest
    return draft


def count(data: DraftData) -> tuple[int, int]:
    """Tokens of the conversations, and positions whose loss counts; features are not read for it."""
    masks = list(data.assistant_masks())
    return sum(map(len, masks)), sum(int(counts(mask).sum()) for mask in masks)


def faults(recipe: Recipe, args: TrainingArguments, sources: Sources) -> Iterator[str]:
    """What the training would refuse, or do wrong in silence."""
    if sources.test is None and recipe.train.get("eval_strategy", "no") != "no":
        yield (
            f"train.eval_strategy={recipe.train['eval_strategy']!r} needs held-out conversations, and there are none. "
            "Raise data.test_items, or set train.eval_strategy=no."
        )
    if not args.average_tokens_across_devices:
        yield "train.average_tokens_across_devices=false: the loss is a mean over all positions. Leave it out."
    if args.fp16 and recipe.loss.value_clip:
        yield "train.fp16=true scales the gradients that loss.value_clip cuts. Use train.bf16, or loss.value_clip=null."
    if is_sharded(args):
        yield "train.fsdp: a draft has one layer, so there is nothing to shard. Leave it out: several processes do DDP."
    yield from reporting_faults(args)
