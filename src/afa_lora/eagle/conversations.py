"""Conversations as the draft learns from them: the target's tokens, and which of them the assistant says.

Published conversations are pieces of longer ones, unfiltered. What cannot be learnt from is left out, and counted.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.utils.data import Dataset

from afa_lora.data import sharegpt
from afa_lora.data.files import READERS, find_files, rows
from afa_lora.data.forms import MOST_FAULTS, all_faults, read_conversation
from afa_lora.data.hub import load_rows
from afa_lora.data.records import DataError, Message, counted, leaving_out
from afa_lora.eagle.recipe import ConversationData
from afa_lora.eagle.templates import MarkedTemplate, marked_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 64  # conversations tokenized at a time
TEST_ITEMS = 100  # held out at most where data.test_items is not given
TEST_SHARE = 20  # one in so many then
LOCAL = "For conversations on this machine: data.conversations=[PATH], a file or a folder of them."

LED = "start with the assistant and lost those turns"
EMPTY = "conversation(s) without turns"
BLANK = "conversation(s) with an empty turn"
UNANSWERED = "conversation(s) without an answer"
REFUSED = "conversation(s) that the chat template refuses"
CHANGED = "conversation(s) whose text the marks in the chat template would change"


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        tokens: (n,) int64, as the chat template writes them.
        assistant: (n,) bool, those that the assistant says, its end of turn included.
    """

    tokens: Tensor
    assistant: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def learnable(self) -> bool:
        """Whether there is a position i with t_{i+1} and t_{i+2} of the assistant, which the loss needs."""
        return bool((self.assistant[1:-1] & self.assistant[2:]).any())


class ConversationDataset(Dataset[dict[str, Tensor]]):
    """The items of a `afa_lora.eagle.features.FeatureStore` without the features: the target has to run along."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self._conversations = conversations

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``tokens`` (n,) int64 and ``assistant`` (n,) bool."""
        conversation = self._conversations[index]
        return {"tokens": conversation.tokens, "assistant": conversation.assistant}

    def assistant_masks(self) -> Iterator[Tensor]:
        """(n,) bool of each conversation."""
        return (conversation.assistant for conversation in self._conversations)


def load_conversations(
    settings: ConversationData, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> tuple[list[Conversation], list[Conversation]]:
    """Read, tokenize and split conversations; the same settings give the same ones.

    Turns of the assistant before the user's first one are taken off, as are turns after the assistant's last one.

    Args:
        settings: the recipe's ``data``.
        tokenizer: the target's.
        say: takes two lines: what was read and left out, and what there is.

    Returns:
        Those to train on and those to test on. Pieces of one published conversation are on the same side.

    Raises:
        DataError: nothing is there, a row cannot be read, the chat template cannot be used, no conversation can be
            used, or so many cannot be held out.
    """
    template, counts = marked_template(tokenizer, settings.chat_template), Counter[str]()
    faults: list[_Fault] = []
    found = _usable(settings, tokenizer, template, counts, faults)
    most = None if settings.limit is None else settings.limit + _held_out(settings.test_items, settings.limit)
    usable = list(islice(found, most))
    if faults:
        raise DataError(all_faults(faults[0].origin, [(fault.place, fault.text) for fault in faults]))
    say(_what_was_read(counts, settings.max_length))
    if not usable:
        raise DataError(
            f"data.conversations={', '.join(settings.conversations)}: no conversation can be used"
            f"{leaving_out(_left_out(counts, settings.max_length))}."
        )
    train, test = _split(usable, settings.test_items)
    say(
        f"{counted(len(train), 'conversation(s)')} to train on with {_tokens(train)}, "
        f"{len(test):,} to test on with {_tokens(test)}."
    )
    return train, test


def data_fingerprint(train: Sequence[Conversation], test: Sequence[Conversation]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all tokens and whose they are, in order."""
    digest = hashlib.sha256()
    for part in (train, test):
        digest.update(len(part).to_bytes(8, "little"))
        for conversation in part:
            digest.update(len(conversation).to_bytes(8, "little"))
            digest.update(conversation.tokens.numpy().tobytes() + conversation.assistant.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class _Read:
    """A record on its way: what was noted about it, and its messages unless it is left out."""

    origin: str
    notes: list[str]
    messages: list[Message] | None = None


@dataclass(frozen=True)
class _Fault:
    """A row that cannot be read: its file, where it stands there, and why."""

    origin: str
    place: str
    text: str


@dataclass(frozen=True)
class _Usable:
    """A conversation, and what it is a piece of."""

    conversation: Conversation
    origin: str


def _usable(
    settings: ConversationData,
    tokenizer: PreTrainedTokenizerBase,
    template: MarkedTemplate,
    counts: Counter[str],
    faults: list[_Fault],
) -> Iterator[_Usable]:
    """Those that can be learnt from, in the order of the files.

    ``counts`` takes what becomes of each that is read; ``faults`` takes the rows that cannot be, of one file at most.
    """
    read = _records(settings.conversations)
    while batch := list(islice(read, BATCH)):
        messages = [one.messages for one in batch if isinstance(one, _Read) and one.messages is not None]
        encoded = iter(_encode(messages, tokenizer, template))
        for one in batch:
            if isinstance(one, _Fault):
                faults.append(one)
                if len(faults) > MOST_FAULTS:
                    return
                continue
            counts.update(["read", *one.notes])
            if one.messages is None:
                continue
            result = next(encoded)
            if isinstance(result, str):
                counts[result] += 1
                continue
            whole = Conversation(torch.tensor(result[0]), torch.tensor(result[1], dtype=torch.bool))
            cut = Conversation(whole.tokens[: settings.max_length], whole.assistant[: settings.max_length])
            if not cut.learnable:
                counts["unlearnable"] += 1
                continue
            counts["cut"] += len(whole) > len(cut)
            yield _Usable(cut, one.origin)


def _records(sources: Sequence[str]) -> Iterator[_Read | _Fault]:
    """The rows of all sources, up to the end of the first file with faults.

    Raises:
        DataError: a source is not there, or is no file that can be read.
    """
    for source in sources:
        for origin, found in _origins(source):
            whole = True
            for place, row in found:
                one = _read(row, origin, place)
                whole = whole and isinstance(one, _Read)
                yield one
            if not whole:
                return


def source_names(sources: Sequence[str]) -> list[str]:
    """What tells sources from others without reading them: names and sizes of files, else the source's own name.

    Raises:
        DataError: a file or folder is not there.
    """
    names = []
    for source in sources:
        files = _files(source)
        names += [source] if files is None else [f"{file.name} ({file.stat().st_size:,} bytes)" for file in files]
    return names


def _origins(source: str) -> Iterator[tuple[str, Iterable[tuple[str, Any]]]]:
    """The files or the split that a source is, each with its rows."""
    if source == sharegpt.NAME:
        path = sharegpt.package_file()
        yield str(path), sharegpt.whole_entries(path.read_text(encoding="utf-8"))
        return
    files = _files(source)
    if files is not None:
        for file in files:
            yield str(file), rows(file)
        return
    loaded = load_rows(source, None, "train", "data.conversations", LOCAL)
    yield source, ((f"item {number}", row) for number, row in enumerate(loaded))


def _files(source: str) -> list[Path] | None:
    """The files that a source is; ``None`` for a package or a data set of the hub."""
    path = Path(source).expanduser()
    if source != sharegpt.NAME and (path.exists() or _is_path(source)):
        return find_files(path, lambda line: None)
    return None


def _is_path(source: str) -> bool:
    """Whether a name that is not here can only have been meant as a path, not as the id of a hub data set."""
    return source.startswith((".", "~", "/")) or source.count("/") > 1 or source.lower().endswith(tuple(READERS))


def _read(record: Mapping[str, Any] | DataError, origin: str, place: str) -> _Read | _Fault:
    try:
        if isinstance(record, DataError):
            raise record
        messages = read_conversation(record)
    except DataError as error:
        return _Fault(origin, place, str(error))
    name = record.get("id")
    # A published conversation is cut into pieces, <id>_0, <id>_1, …
    one = _Read(re.sub(r"_\d+$", "", name) if isinstance(name, str) and name else f"{origin}, {place}", [])
    if not messages:
        one.notes.append(EMPTY)
        return one
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    kept = [message for i, message in enumerate(messages) if i > first or message["role"] != "assistant"]
    last = max((i for i, message in enumerate(kept) if message["role"] == "assistant"), default=-1)
    if last < 0:
        one.notes.append(UNANSWERED)
    elif not all(message["content"].strip() for message in kept[: last + 1]):
        one.notes.append(BLANK)
    else:
        one.messages = kept[: last + 1]
        if len(kept) < len(messages):
            one.notes.append(LED)
    return one


def _encode(
    conversations: Sequence[list[Message]], tokenizer: PreTrainedTokenizerBase, template: MarkedTemplate
) -> list[tuple[list[int], list[int]] | str]:
    """Tokens and mask of each, or why it is left out."""
    try:
        encoded: list[Any] = [*template.encode(tokenizer, conversations)] if conversations else []
    except TemplateError:
        if len(conversations) == 1:
            return [REFUSED]
        return [*chain.from_iterable(_encode([one], tokenizer, template) for one in conversations)]
    kept = (template.keeps_text(tokenizer, one) for one in conversations)
    return [result if same else CHANGED for result, same in zip(encoded, kept, strict=True)]


def _held_out(wanted: int | None, train: int) -> int:
    return min(TEST_ITEMS, train // TEST_SHARE) if wanted is None else wanted


def _split(usable: Sequence[_Usable], test_items: int | None) -> tuple[list[Conversation], list[Conversation]]:
    """Hold out some, drawn by a fixed seed. Pieces of one conversation, and equal ones, stay together."""
    parents: dict[str | bytes, str | bytes] = {}

    def first(name: str | bytes) -> str | bytes:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name], name = parents[parent], parent  # the way is shorter next time
        return name

    for one in usable:
        parents[first(hashlib.sha256(one.conversation.tokens.numpy().tobytes()).digest())] = first(one.origin)
    groups: dict[str | bytes, list[int]] = {}
    for index, one in enumerate(usable):
        groups.setdefault(first(one.origin), []).append(index)
    wanted = min(TEST_ITEMS, len(usable) // (TEST_SHARE + 1)) if test_items is None else test_items
    held: set[int] = set()
    for group in random.Random(0).sample(list(groups.values()), len(groups)):
        if len(held) + len(group) <= min(wanted, len(usable) - 1):
            held.update(group)
    if test_items is not None and len(held) < test_items:
        raise DataError(
            f"data.test_items={test_items}, but only {len(held)} of the {counted(len(usable), 'conversation(s)')} can "
            "be held out: some must be left to train on, and pieces of one conversation stay together. Set "
            f"data.test_items to {len(held)} or less."
        )
    train = [one.conversation for index, one in enumerate(usable) if index not in held]
    return train, [usable[index].conversation for index in sorted(held)]


def _left_out(counts: Counter[str], max_length: int) -> dict[str, int]:
    reasons = {reason: counts[reason] for reason in (EMPTY, BLANK, UNANSWERED, REFUSED, CHANGED)}
    return {
        **reasons,
        f"conversation(s) with no answer within data.max_length={max_length}": counts["unlearnable"],
    }


def _what_was_read(counts: Counter[str], max_length: int) -> str:
    kept = {LED: counts[LED], f"are cut at data.max_length={max_length}": counts["cut"]}
    listed = ", ".join(f"{count:,} {what}" for what, count in kept.items() if count)
    read = f"{counted(counts['read'], 'conversation(s)')} read{': ' if listed else ''}{listed}"
    return f"{read}{leaving_out(_left_out(counts, max_length))}."


def _tokens(conversations: Sequence[Conversation]) -> str:
    said = sum(int(one.assistant.sum()) for one in conversations)
    return f"{sum(map(len, conversations)):,} tokens, {said:,} of them the assistant's"
