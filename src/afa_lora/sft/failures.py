"""Failures in the middle of a run that the user can mend: what happened, what is kept, what to change."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from afa_lora.core.errors import AfaLoraError
from afa_lora.running.checkpoints import NonFiniteError, checkpoints_of, is_sealed, newest, remove
from afa_lora.sft.recipe import Recipe

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter failed", "unexpected pos")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
GIB = 2**30


class RunStopped(AfaLoraError):
    """A run has stopped before its end; the message says why, what is kept and how to go on."""


@contextmanager
def explained(recipe: Recipe, checkpoints: Path) -> Iterator[None]:
    """Turn a full disk, exhausted memory, a NaN and Ctrl-C inside the block into `RunStopped`.

    Args:
        recipe: names the settings to change.
        checkpoints: the run's checkpoints; what was being written when the disk was full is removed.
    """
    try:
        yield
    except NonFiniteError as error:
        raise RunStopped(
            f"Training has diverged: {error}. {_kept(checkpoints)} Lower train.learning_rate"
            f"{_now(recipe, 'learning_rate')}, lengthen train.warmup_steps or lower train.max_grad_norm, in a run with "
            f"another output{_from_there(checkpoints)}."
        ) from error
    except KeyboardInterrupt:
        raise RunStopped(f"Interrupted. {_kept(checkpoints)} {_again()}") from None
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        if _is_full_disk(error):
            _remove_unfinished(checkpoints)
            free = shutil.disk_usage(recipe.output).free / GIB
            raise RunStopped(
                f"The disk is full: writing to {recipe.output} failed ({_first_line(error)}; {free:.1f} GiB are free). "
                f"{_kept(checkpoints)} Free some space or set train.save_total_limit=2. {_again()}"
            ) from error
        if _is_out_of_memory(error):
            raise RunStopped(
                f"Out of memory ({_first_line(error)}). {_kept(checkpoints)} {_less_memory(recipe)}"
            ) from error
        raise


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return not isinstance(error, torch.OutOfMemoryError) and any(text in str(error) for text in NO_SPACE)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def _remove_unfinished(checkpoints: Path) -> None:
    for checkpoint in checkpoints_of(checkpoints):
        if not is_sealed(checkpoint):
            remove(checkpoint)


def _kept(checkpoints: Path) -> str:
    last = newest(checkpoints)
    return f"The last good checkpoint is {last}." if last else "There was no checkpoint yet."


def _from_there(checkpoints: Path) -> str:
    last = newest(checkpoints)
    return f"; train.resume_from_checkpoint={last} starts it from there" if last else ""


def _again() -> str:
    return "The same command again goes on from there."


def _less_memory(recipe: Recipe) -> str:
    """What to lower, most effective first, leaving out what is done already."""
    batch = recipe.train.get("per_device_train_batch_size", 8)
    remedies = []
    if batch > 1:
        factor = recipe.train.get("gradient_accumulation_steps", 1)
        remedies.append(
            f"train.per_device_train_batch_size={batch // 2} train.gradient_accumulation_steps={2 * factor} "
            "(the same training)"
        )
    if recipe.train.get("gradient_checkpointing") is False:
        remedies.append("train.gradient_checkpointing=true (slower)")
    length = recipe.train.get("max_length", 1024)
    remedies.append(f"train.max_length={length // 2}" if length else "train.max_length=1024")
    if recipe.load.quantization is None and recipe.method != "full":
        remedies.append("load.quantization=4bit")
    return f"Lower one of: {'; '.join(remedies)}."


def _now(recipe: Recipe, key: str) -> str:
    return f" (now {recipe.train[key]:g})" if key in recipe.train else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
