"""Features on disk, read item by item; what is not asked for stays on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from afa_lora.data.records import DataError
from afa_lora.eagle.conversations import source_names
from afa_lora.eagle.features.index import AGAIN, FeatureError, Fingerprint, Index, Split
from afa_lora.eagle.model import same_target
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.target import TargetEnds

COMPARED = ("limit", "test_items", "max_length")  # of the recipe's data


class FeatureStore(Dataset[dict[str, Tensor]]):
    """One split of a folder of features; the files are mapped into memory. It can be pickled.

    Args:
        folder: what `write_features` wrote.
        split: which part.
        index: that of the folder.
    """

    def __init__(self, folder: Path, split: Split, index: Index) -> None:
        self.folder, self.split, self.index = folder, split, index
        self._files: dict[str, Any] = {}  # opened by the process that reads
        self._places: dict[int, tuple[str, int]] = {}  # of each item: its file, and where it begins there
        plan = index.splits[split]
        for shard in plan.shards:
            start = 0
            for item in shard.items:
                self._places[item] = (shard.file, start)
                start += plan.lengths[item]

    @classmethod
    def open(cls, folder: Path, split: Split, ends: TargetEnds | None = None) -> FeatureStore:
        """Open a split.

        Args:
            folder: what `write_features` wrote.
            split: which part.
            ends: of the target that they must be of; not compared unless given.

        Raises:
            FeatureError: there are no features, they are of another target, or a file is missing or not whole.
        """
        index = Index.read(folder)
        if ends is not None:
            _check_target(folder, index, ends)
        for shard in index.splits[split].shards:
            if fault := index.fault(folder, split, shard):
                raise FeatureError(f"{folder / shard.file} {fault}. {AGAIN}")
        return cls(folder, split, index)

    @property
    def fingerprint(self) -> Fingerprint:
        """What the features are of."""
        return self.index.fingerprint

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 over `fingerprint`."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:16]

    def assistant_masks(self) -> Iterator[Tensor]:
        """(n,) bool of each conversation, file by file; the features are not read."""
        plan = self.index.splits[self.split]
        for shard in plan.shards:
            with safe_open(self.folder / shard.file, framework="pt") as opened:
                yield from opened.get_tensor("assistant").split([plan.lengths[item] for item in shard.items])

    def check(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        """Compare with what a recipe would write; the conversations themselves are not read for it.

        Files are told by their names and sizes, so they may have been moved; files that are gone are not compared.

        Args:
            recipe: its ``data``, ``features.dtype`` and ``load.dtype`` are read.
            say: takes a line if the conversations are not here.

        Raises:
            FeatureError: they were written with other settings, or from other files.
        """
        fingerprint, here = self.fingerprint, recipe.data.model_dump(mode="json")
        other = [f"data.{key}={self.index.data[key]}" for key in COMPARED if self.index.data[key] != here[key]]
        if fingerprint["dtype"] != recipe.features.dtype:
            other.append(f"features.dtype={fingerprint['dtype']}")
        if recipe.load.dtype not in ("auto", fingerprint["computed_in"]):
            other.append(f"load.dtype={fingerprint['computed_in']}")
        folder = f"features.folder={str(self.folder)!r}"
        if other:
            raise FeatureError(
                f"{folder} was written with {', '.join(other)}. Set the same here, or write features for this recipe "
                "into another features.folder."
            )
        try:
            sources = source_names(recipe.data.conversations)
        except DataError as error:
            say(f"Not compared with the conversations that {folder} was written from: {error}")
            return
        if sources != self.index.sources:
            raise FeatureError(
                f"{folder} was written from other conversations:\n  there: {_shown(self.index.sources)}\n  here: "
                f"{_shown(sources)}\nGive the same, or another features.folder. If only the files are others and what "
                "they hold is the same, run afa eagle features again: it compares that."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``tokens`` (n,) int64, ``assistant`` (n,) bool and ``features`` (n, hidden) as they are stored."""
        file, start = self._places[range(len(self))[index]]
        end = start + self.index.splits[self.split].lengths[index]
        if file not in self._files:
            self._files[file] = safe_open(self.folder / file, framework="pt")
        opened = self._files[file]
        # A slice is a view of the mapped file: whoever changed it in place would change the item for good.
        return {key: opened.get_slice(key)[start:end].clone() for key in ("tokens", "assistant", "features")}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def _check_target(folder: Path, index: Index, ends: TargetEnds) -> None:
    there, here = index.fingerprint["hidden_size"], ends.config.hidden_size
    origin = f"features.folder={str(folder)!r} holds features of the target {index.target}"
    remedy = "Give that target as model, or write features of this one into another features.folder."
    if there != here:
        raise FeatureError(f"{origin} with {there} numbers each, and model={ends.name!r} has {here}. {remedy}")
    if not same_target(index.fingerprint["target_digest"], ends.digest):
        raise FeatureError(f"{origin}, and model={ends.name!r} has other weights. {remedy}")


def _shown(sources: list[str]) -> str:
    return f"{', '.join(sources[:3])}{f' and {len(sources) - 3} more' if len(sources) > 3 else ''}"
