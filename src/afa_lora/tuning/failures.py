"""Failures in the middle of a run that the user can mend: what happened, what is kept, what to change."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError

from afa_lora.core.errors import AfaLoraError
from afa_lora.running.checkpoints import NonFiniteError, checkpoints_of, is_sealed, newest, remove
from afa_lora.tuning.recipe import TuningRecipe

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter failed", "unexpected pos")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
GIB = 2**30


class RunStopped(AfaLoraError):
    """A run has stopped before its end; the message says why, what is kept and how to go on."""


class RunInterrupted(RunStopped):
    """A run was stopped by Ctrl-C or SIGTERM."""


@contextmanager
def explained(recipe: TuningRecipe, checkpoints: Path) -> Iterator[None]:
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
            f"{_now(recipe, 'learning_rate')} or lengthen train.warmup_steps, in a run with another output."
        ) from error
    except KeyboardInterrupt:
        raise RunInterrupted(f"Interrupted. {what_is_kept(checkpoints)}") from None
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        if is_full_disk(error):
            _remove_unfinished(checkpoints)
            free = shutil.disk_usage(recipe.output).free / GIB
            raise RunStopped(
                f"The disk is full: writing to {recipe.output} failed ({_first_line(error)}; {free:.1f} GiB are free). "
                f"Free some space or set train.save_total_limit=2. {what_is_kept(checkpoints)}"
            ) from error
        if is_out_of_memory(error):
            raise RunStopped(
                f"Out of memory ({_first_line(error)}). {_kept(checkpoints)} {_less_memory(recipe, checkpoints)}"
            ) from error
        raise


def is_full_disk(error: Exception) -> bool:
    """Whether writing has failed because there is no room."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return not isinstance(error, torch.OutOfMemoryError) and any(text in str(error) for text in NO_SPACE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory, the machine's or the accelerator's, was exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def _remove_unfinished(checkpoints: Path) -> None:
    if not PartialState().is_main_process:
        return
    for checkpoint in checkpoints_of(checkpoints):
        if not is_sealed(checkpoint):
            remove(checkpoint)


def _kept(checkpoints: Path) -> str:
    last = newest(checkpoints)
    return f"The last good checkpoint is {last}." if last else "There was no checkpoint yet."


def what_is_kept(checkpoints: Path) -> str:
    """The last good checkpoint, and what starting the run again does."""
    how = "goes on from there" if newest(checkpoints) else "starts from the beginning"
    return f"{_kept(checkpoints)} The same command again {how}."


def _less_memory(recipe: TuningRecipe, checkpoints: Path) -> str:
    """What to lower, most effective first, leaving out what is done already."""
    batch = recipe.train.get("per_device_train_batch_size", 8)
    remedies = []
    if batch > 1:
        factor = recipe.train.get("gradient_accumulation_steps", 1)
        same = "" if "steps_per_generation" in recipe.train else " (the same training)"
        remedies.append(
            f"train.per_device_train_batch_size={batch // 2} train.gradient_accumulation_steps={2 * factor}{same}"
        )
    if recipe.train.get("gradient_checkpointing") is False:
        remedies.append("train.gradient_checkpointing=true (slower)")
    remedies.extend(recipe.less_memory)
    elsewhere = " In a run with another output: they change the training." if newest(checkpoints) else ""
    return f"Change one of: {'; '.join(remedies)}.{elsewhere} If it came in a test: {recipe.less_memory_in_test}."


def _now(recipe: TuningRecipe, key: str) -> str:
    return f" (now {recipe.train[key]:g})" if key in recipe.train else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
