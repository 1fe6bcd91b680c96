"""``afa eagle features``: the target reads every conversation once, and what it makes of them is kept.

File by file, each written beside its place and renamed into it: a kill loses at most the two that are under way, and
the same command again goes on. One file is written while the next one is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from afa_lora.eagle.conversations import Conversation, data_fingerprint, source_names
from afa_lora.eagle.features.index import (
    DTYPES,
    INDEX,
    FeatureError,
    Fingerprint,
    Index,
    Shard,
    Split,
    differences,
    make_plan,
)
from afa_lora.eagle.inputs import read_conversations, target_dtype, target_tokenizer
from afa_lora.eagle.recipe import Recipe
from afa_lora.eagle.target import TargetEnds, features_of
from afa_lora.eagle.templates import marked_template
from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.models import load_model
from afa_lora.report.formats import mebibytes
from afa_lora.report.progress import progress_bar
from afa_lora.running.stopping import terminable
from afa_lora.tuning.failures import GIB, RunInterrupted, RunStopped, is_full_disk, is_out_of_memory
from afa_lora.tuning.folder import check_place
from afa_lora.tuning.loading import training_device

Conversations = dict[Split, list[Conversation]]


@dataclass(frozen=True)
class FeatureSummary:
    """What was written.

    Attributes:
        folder: where the features lie.
        items: conversations of each split.
        tokens: of all conversations.
        size: bytes of all files.
        files: how many there are.
        written: how many of them this start has written.
        written_tokens: the tokens in those.
        seconds: that this took, loading aside.
    """

    folder: Path
    items: dict[Split, int]
    tokens: int
    size: int
    files: int
    written: int
    written_tokens: int
    seconds: float


def write_features(recipe: Recipe, console: Console) -> FeatureSummary:
    """Write the features of the recipe's conversations; what an earlier start has written stays.

    Args:
        recipe: its ``model``, ``load``, ``data`` and ``features`` are read.
        console: where progress goes.

    Raises:
        FeatureError: no folder is named, it holds something else, another process writes to it, or the disk has not
            enough room.
        RunStopped: the disk or the memory is full, or it was stopped; the files that are finished are kept.
        AfaLoraError: the conversations or the target are at fault.
    """
    folder = recipe.features.folder
    if folder is None:
        raise FeatureError(
            "features.folder is not set. Name the folder for the features: features.folder=PATH. Without one, "
            "afa eagle train lets the target run along."
        )

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with terminable(), _explained(recipe, folder):
        check_place("features.folder", folder)
        dtype = target_dtype(recipe)
        conversations, fingerprint = _inputs(recipe, dtype, say)
        with _claimed(folder):
            index = _index(recipe, folder, fingerprint, conversations)
            missing = [(split, shard) for split, shard in index.shards() if index.fault(folder, split, shard)]
            _announce(index, folder, missing, say)
            index.write(folder)
            seconds = 0.0
            if missing:
                target, _ = load_model(recipe.model, report=say, dtype=dtype)
                target.to(torch.device(training_device(recipe))).eval()  # type: ignore[arg-type]
                seconds = write_shards(index, folder, missing, conversations, target, console)
    written = sum(index.splits[split].tokens_in(shard) for split, shard in missing)
    size = sum((folder / shard.file).stat().st_size for _, shard in index.shards())
    items = {split: len(part) for split, part in conversations.items()}
    files = sum(len(plan.shards) for plan in index.splits.values())
    return FeatureSummary(folder, items, _tokens(conversations), size, files, len(missing), written, seconds)


def write_shards(
    index: Index,
    folder: Path,
    shards: Sequence[tuple[Split, Shard]],
    conversations: Conversations,
    target: PreTrainedModel,
    console: Console,
) -> float:
    """Compute the features of some files and write them. Returns the seconds that it took.

    Args:
        index: their plan.
        folder: where they go.
        shards: which ones.
        conversations: of every split.
        target: on its device.
        console: where progress goes.
    """
    begun, done = time.perf_counter(), 0
    total = sum(index.splits[split].tokens_in(shard) for split, shard in shards)
    with progress_bar(console) as progress, ThreadPoolExecutor(max_workers=1) as writer:
        bar = progress.add_task("features", total=total, note="")
        pending: Future[None] | None = None
        for split, shard in shards:
            tensors = _empty(index, split, shard)
            start = 0
            for batch in shard.batches:
                some = [conversations[split][item] for item in batch]
                end = start + sum(map(len, some))
                tensors["features"][start:end] = batch_features(target, some)
                for key in ("tokens", "assistant"):
                    tensors[key][start:end] = torch.cat([getattr(one, key) for one in some])
                done, start = done + end - start, end
                speed = done / (time.perf_counter() - begun)
                progress.update(bar, completed=done, note=f"tokens  {speed:,.0f} tokens/s")
            if pending is not None:
                pending.result()  # one is written while the next is computed; no more are held in memory
            pending = writer.submit(_write, folder / shard.file, tensors, index.mark(shard))
        if pending is not None:
            pending.result()
    return time.perf_counter() - begun


def batch_features(target: PreTrainedModel, conversations: Sequence[Conversation]) -> Tensor:
    """The features of some conversations, one behind the other: (all their tokens, hidden), on the target's device."""
    tokens = pad_sequence([one.tokens for one in conversations], batch_first=True).to(target.device)
    features = features_of(target, tokens)  # causal: the padding on the right is seen by nothing that is kept
    return torch.cat([row[: len(one)] for row, one in zip(features, conversations, strict=True)])


def _write(path: Path, tensors: dict[str, Tensor], mark: str) -> None:
    write_atomic(path, save(tensors, metadata={"mark": mark}))


def _empty(index: Index, split: Split, shard: Shard) -> dict[str, Tensor]:
    tokens, (dtype, _) = index.splits[split].tokens_in(shard), DTYPES[index.fingerprint["dtype"]]
    return {
        "features": torch.empty(tokens, index.fingerprint["hidden_size"], dtype=dtype),
        "tokens": torch.empty(tokens, dtype=torch.int64),
        "assistant": torch.empty(tokens, dtype=torch.bool),
    }


def _inputs(recipe: Recipe, dtype: torch.dtype, say: Callable[[str], None]) -> tuple[Conversations, Fingerprint]:
    """The conversations and what the features will be of; of the target's weights only its ends are read."""
    ends = TargetEnds.load(recipe.model)
    train, test = read_conversations(recipe, ends.config, say)
    fingerprint = {
        "target_digest": ends.digest,
        "hidden_size": ends.config.hidden_size,
        "chat_template": marked_template(target_tokenizer(recipe), recipe.data.chat_template).digest,
        "data": data_fingerprint(train, test),
        "max_length": recipe.data.max_length,
        "dtype": recipe.features.dtype,
        "computed_in": str(dtype).removeprefix("torch."),
    }
    return {"train": train, "test": test}, fingerprint


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs."""
    if folder.exists() and not (folder / INDEX).is_file():
        foreign = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        if foreign:
            raise FeatureError(
                f"features.folder={str(folder)!r} holds files that are not features ({', '.join(foreign[:3])}"
                f"{', …' if len(foreign) > 3 else ''}). Choose another folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FeatureError(f"Another process is writing to features.folder={str(folder)!r} now.") from None
    with lock:
        remove_leftovers(folder)
        yield


def _index(recipe: Recipe, folder: Path, fingerprint: Fingerprint, conversations: Conversations) -> Index:
    """The folder's index if it has one and a file is finished, else a new one.

    Raises:
        FeatureError: it is one of other features.
    """
    data = recipe.data.model_dump(mode="json")
    empty = Index(recipe.model, fingerprint, data, source_names(recipe.data.conversations), {})
    if (folder / INDEX).is_file():
        index = Index.read(folder)
        if other := differences(index.fingerprint, fingerprint):
            listed = "\n  ".join(other)
            raise FeatureError(
                f"features.folder={str(folder)!r} holds other features (of {index.target}):\n  {listed}\nChoose "
                "another folder, remove that one, or give the settings that it was begun with."
            )
        if any(index.fault(folder, split, shard) is None for split, shard in index.shards()):
            # Batches and files stay as they were planned; the same conversations may lie in other files now.
            return replace(index, data=empty.data, sources=empty.sources)
    room = recipe.features.shard_megabytes * 2**20 // empty.token_bytes
    for split, part in conversations.items():
        empty.splits[split] = make_plan(split, [len(one) for one in part], recipe.features.batch_tokens, room)
    return empty


def _announce(index: Index, folder: Path, missing: Sequence[tuple[Split, Shard]], say: Callable[[str], None]) -> None:
    """Say what will be written.

    Raises:
        FeatureError: the disk has not that much room.
    """
    tokens = sum(index.splits[split].tokens_in(shard) for split, shard in missing)
    size, free = tokens * index.token_bytes, disk_usage(folder).free
    if not missing:
        say(f"All features are in {folder} already.")
        return
    there = sum(1 for _ in index.shards()) - len(missing)
    kept = f" {there} file(s) of an earlier start are kept." if there else ""
    if size > free:
        smaller = ", or features.dtype=bfloat16" if index.fingerprint["dtype"] == "float32" else ""
        raise FeatureError(
            f"features.folder={str(folder)!r}: {tokens:,} tokens need {_size(size)}, and {_size(free)} are free. "
            f"Choose a folder on another disk, or less with data.limit or data.max_length{smaller}; without "
            "features.folder the target runs along in the training and nothing is written."
        )
    say(f"{tokens:,} tokens, {_size(size)} to write to {folder} ({_size(free)} are free).{kept}")


@contextmanager
def _explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Turn a full disk, exhausted memory and Ctrl-C inside the block into `RunStopped`."""
    kept = "The files that are finished are kept; the same command again goes on from there."
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterrupted(f"Interrupted. {kept}") from None
    except (OSError, RuntimeError, MemoryError) as error:
        if is_full_disk(error):
            raise RunStopped(
                f"The disk is full: writing to features.folder={str(folder)!r} failed ({error}). Free some space. "
                f"{kept}"
            ) from error
        if is_out_of_memory(error):
            batch, shard = recipe.features.batch_tokens, recipe.features.shard_megabytes
            raise RunStopped(
                f"Out of memory ({(str(error).splitlines() or [type(error).__name__])[0]}). Set features.batch_tokens="
                f"{max(batch // 2, 1)} or features.shard_megabytes={max(shard // 2, 1)}; once a file is finished, they "
                f"hold for a new folder only. {kept}"
            ) from error
        raise


def _tokens(conversations: Conversations) -> int:
    return sum(len(one) for part in conversations.values() for one in part)


def _size(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{mebibytes(size)} MiB"
