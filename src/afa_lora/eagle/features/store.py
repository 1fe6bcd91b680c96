"""Features on disk, read item by item; what is not asked for stays on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from afa_lora.eagle.features.index import AGAIN, FeatureError, Fingerprint, Index, Split
from afa_lora.eagle.recipe import ConversationData
from afa_lora.eagle.target import TargetEnds

COMPARED = ("limit", "test_items", "max_length")  # of the recipe's data; conversations may have been moved since


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

    def check_data(self, data: ConversationData) -> None:
        """Compare with a recipe's ``data``; the conversations themselves are not read for it.

        Raises:
            FeatureError: they were written with another length or another number of conversations.
        """
        here = data.model_dump(mode="json")
        other = [f"data.{key}={self.index.data[key]}" for key in COMPARED if self.index.data[key] != here[key]]
        if other:
            raise FeatureError(
                f"features.folder={str(self.folder)!r} was written with {', '.join(other)}. Set the same here, or "
                "write features for this recipe into another features.folder."
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
    if index.fingerprint["target_digest"] != ends.digest:
        raise FeatureError(f"{origin}, and model={ends.name!r} has other weights. {remedy}")
