"""Checkpoints that can be trusted: each is sealed once it is whole, and only an intact sealed one is resumed from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from afa_lora.core.errors import AfaLoraError, InvalidSettingError
from afa_lora.files import flush, sha256, write_atomic

SEAL = "sealed.json"


class NonFiniteError(AfaLoraError):
    """The loss or the trained weights are no longer finite numbers."""


class CheckpointSealer(TrainerCallback):
    """Seals every checkpoint that the Trainer has finished writing, then removes those beyond the limit.

    The Trainer writes a checkpoint file by file and removes old ones by itself before anyone could have looked at the
    new one. So it gets no ``save_total_limit``; the limit is applied here, after the seal.

    Args:
        limit: how many checkpoints to keep (`TrainingArguments.save_total_limit`); all unless given.

    Raises:
        NonFiniteError: a trained weight is NaN or infinite; that checkpoint is not sealed.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        name = non_finite_weight(kwargs["model"])
        if name is not None:
            raise NonFiniteError(f"after step {state.global_step} the weight {name} is no longer finite")
        processes = PartialState()
        processes.wait_for_everyone()  # each process writes a part: its random state, its shards
        if processes.is_main_process:
            folder = Path(str(args.output_dir))
            seal(folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            self._rotate(folder, state.best_model_checkpoint)

    def _rotate(self, folder: Path, best: str | None) -> None:
        if not self._limit or self._limit < 1:
            return
        checkpoints = checkpoints_of(folder)
        kept = {*checkpoints[-self._limit :], *([Path(best)] if best else [])}
        for checkpoint in checkpoints:
            if checkpoint not in kept:
                remove(checkpoint)


def non_finite_weight(model: nn.Module) -> str | None:
    """The name of a trained weight that has a NaN or an infinity (in this process's shard), if there is one."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if not torch.isfinite(local).all():
                return name
    return None


def seal(checkpoint: Path) -> None:
    """Flush every file of a checkpoint to disk and record its SHA-256; from here on it counts."""
    for path in (*_files(checkpoint), checkpoint):
        flush(path)
    digests = _digests(checkpoint)
    write_atomic(checkpoint / SEAL, json.dumps(digests, indent=2, sort_keys=True) + "\n")


def is_sealed(checkpoint: Path) -> bool:
    """Whether it was ever whole."""
    return (checkpoint / SEAL).is_file()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a sealed checkpoint: the first file that is missing or changed; ``None`` if it is intact."""
    try:
        recorded = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    except ValueError:
        return f"{SEAL} is damaged"
    present = _digests(checkpoint)
    for name, digest in recorded.items():
        if name not in present:
            return f"{name} is missing"
        if present[name] != digest:
            return f"{name} is damaged"
    return None


def last_good(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint. Newer ones that are not are removed, and each is reported."""
    for checkpoint in reversed(checkpoints_of(folder)):
        fault = damage(checkpoint) if is_sealed(checkpoint) else "it was not written to its end"
        if fault is None:
            return checkpoint
        report(f"{checkpoint} cannot be used: {fault}. Falling back to the one before.")
        remove(checkpoint)
    return None


def newest(folder: Path) -> Path | None:
    """The newest sealed checkpoint, not checked any further."""
    return next((c for c in reversed(checkpoints_of(folder)) if is_sealed(c)), None)


def check_checkpoint(checkpoint: str) -> int:
    """Look at a checkpoint before a training goes on from it. Returns the optimizer step at which it was taken.

    Raises:
        InvalidSettingError: there is no checkpoint at that path, or it has a seal and does not match it.
    """
    folder = Path(checkpoint)
    state = folder / TRAINER_STATE_NAME
    if not state.is_file():
        raise InvalidSettingError(f"train.resume_from_checkpoint={checkpoint!r} is no checkpoint: {state} is missing.")
    fault = damage(folder) if is_sealed(folder) else None  # another program's checkpoints have no seal
    if fault:
        raise InvalidSettingError(f"train.resume_from_checkpoint={checkpoint!r} cannot be used: {fault}.")
    return TrainerState.load_from_json(str(state)).global_step


def checkpoints_of(folder: Path) -> list[Path]:
    """All checkpoints, oldest step first."""
    return [Path(path) for path in sort_checkpoints(str(folder))] if folder.is_dir() else []


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, the seal first: killed half-way, what is left does not count."""
    (checkpoint / SEAL).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)


def _digests(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of every file by its path in the checkpoint."""
    files = _files(checkpoint)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {
            path.relative_to(checkpoint).as_posix(): digest
            for path, digest in zip(files, threads.map(sha256, files), strict=True)
        }
