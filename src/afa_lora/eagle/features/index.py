"""The index of a folder of features: whose they are, which item lies where, and whether a file is whole.

A file holds some conversations one behind the other: ``features`` (tokens, hidden), ``tokens`` and ``assistant``
(tokens,). Which ones, and in which batches the target reads them, is settled before the first is written; so a second
start writes what an uninterrupted one would have written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from afa_lora.core.errors import AfaLoraError
from afa_lora.files import write_atomic

INDEX = "index.json"
FORMAT = 2
SPLITS: tuple[Split, ...] = ("train", "test")
DTYPES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16")}  # safetensors' names
BESIDE = 8 + 1  # bytes of a token's id and of whose it is
AGAIN = "Run afa eagle features with its recipe again: it writes what is missing, and nothing else."

Split = Literal["train", "test"]
Fingerprint = dict[str, Any]
"""``target_digest``, ``hidden_size``, ``chat_template`` (digest), ``data`` (digest), ``max_length``, ``dtype`` and
``computed_in``: features with another one are other features."""


class FeatureError(AfaLoraError):
    """Features on disk cannot be used or written."""


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
        file: its name.
        batches: the items in it, in its order, grouped as the target reads them.
    """

    file: str
    batches: list[list[int]]

    @property
    def items(self) -> list[int]:
        """The items in it, in its order."""
        return [item for batch in self.batches for item in batch]


@dataclass(frozen=True)
class SplitPlan:
    """The items of a split.

    Attributes:
        lengths: the tokens of each.
        shards: the files.
    """

    lengths: list[int]
    shards: list[Shard]

    def tokens_in(self, shard: Shard) -> int:
        """The tokens in a file."""
        return sum(self.lengths[item] for item in shard.items)


@dataclass(frozen=True)
class Index:
    """What ``index.json`` holds.

    Attributes:
        target: the target's name, as it was given.
        fingerprint: what the features are of.
        data: the recipe's ``data``.
        sources: its conversations, as `afa_lora.eagle.conversations.source_names` tells them.
        splits: the plan of each split.
    """

    target: str
    fingerprint: Fingerprint
    data: dict[str, Any]
    sources: list[str]
    splits: dict[Split, SplitPlan]

    def mark(self, shard: Shard) -> str:
        """What a file bears, so that no other one is taken for it."""
        return hashlib.sha256(json.dumps([self.fingerprint, asdict(shard)], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def token_bytes(self) -> int:
        """Bytes of a token on disk."""
        dtype, _ = DTYPES[self.fingerprint["dtype"]]
        return int(self.fingerprint["hidden_size"]) * dtype.itemsize + BESIDE

    def shards(self) -> Iterator[tuple[Split, Shard]]:
        """All files."""
        for split in SPLITS:
            for shard in self.splits[split].shards:
                yield split, shard

    def write(self, folder: Path) -> None:
        """Write it to ``folder``."""
        write_atomic(folder / INDEX, json.dumps({"format": FORMAT, **asdict(self)}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Index:
        """Read that of ``folder``.

        Raises:
            FeatureError: there is none, it is damaged, or a version of another form wrote it.
        """
        path = folder / INDEX
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise FeatureError(
                    f"features.folder={str(folder)!r} holds features of form {found['format']}, and this version reads "
                    f"form {FORMAT}. Write them again, into another folder."
                )
            splits = {split: _plan(split, found["splits"][split]) for split in SPLITS}
            return cls(found["target"], found["fingerprint"], found["data"], found["sources"], splits)
        except FileNotFoundError as error:
            raise FeatureError(
                f"features.folder={str(folder)!r} holds no features: there is no {INDEX}. Write them: "
                "afa eagle features RECIPE"
            ) from error
        except NotADirectoryError as error:
            raise FeatureError(f"features.folder={str(folder)!r} is a file. Name a folder.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FeatureError(
                f"{path} is damaged ({error!r}). Remove the folder and run afa eagle features with its recipe again."
            ) from error

    def fault(self, folder: Path, split: Split, shard: Shard) -> str | None:
        """What is wrong with a file, seen from its size and its header: the end of a sentence about it."""
        path, tokens = folder / shard.file, self.splits[split].tokens_in(shard)
        if not path.is_file():
            return "is missing"
        _, dtype = DTYPES[self.fingerprint["dtype"]]
        expected = {
            "features": ([tokens, self.fingerprint["hidden_size"]], dtype),
            "tokens": ([tokens], "I64"),
            "assistant": ([tokens], "BOOL"),
        }
        try:
            with safe_open(path, framework="pt") as opened:  # compares the size with the header
                slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
                found = {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
                mark = (opened.metadata() or {}).get("mark")
        except (OSError, SafetensorError) as error:
            return f"is truncated or damaged ({error})"
        if found != expected or mark != self.mark(shard):
            return f"is not the one that {INDEX} lists"
        return None


def make_plan(split: Split, lengths: Sequence[int], batch_tokens: int, shard_tokens: int) -> SplitPlan:
    """Sort items into batches of like length, the longest first, and batches into files.

    Args:
        split: names the files.
        lengths: the tokens of each item.
        batch_tokens: a batch has at most so many, padding included, or one item.
        shard_tokens: a file has at most so many, or one batch.
    """
    batches: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(item)
        else:
            batches.append([item])
    files: list[list[list[int]]] = []
    room = 0
    for batch in batches:
        tokens = sum(lengths[item] for item in batch)
        if not files or tokens > room:
            files.append([])
            room = shard_tokens
        files[-1].append(batch)
        room -= tokens
    shards = [Shard(name, parts) for name, parts in zip(_names(split, len(files)), files, strict=True)]
    return SplitPlan(list(lengths), shards)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """A line for each key in which two fingerprints differ."""
    keys = dict.fromkeys([*there, *here])
    return [f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys if there.get(key) != here.get(key)]


def _names(split: Split, files: int) -> list[str]:
    return [f"{split}-{number:05d}-of-{files:05d}.safetensors" for number in range(1, files + 1)]


def _plan(split: Split, found: Mapping[str, Any]) -> SplitPlan:
    """Raises a ValueError unless it is one that `make_plan` can have made."""
    plan = SplitPlan(found["lengths"], [Shard(shard["file"], shard["batches"]) for shard in found["shards"]])
    if [shard.file for shard in plan.shards] != _names(split, len(plan.shards)):
        raise ValueError(f"the files of {split} have other names")
    if sorted(item for shard in plan.shards for item in shard.items) != [*range(len(plan.lengths))]:
        raise ValueError(f"an item of {split} is there twice or not at all")
    return plan
