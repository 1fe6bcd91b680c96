"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from afa_lora.core.errors import closest
from afa_lora.data.forms import read_records
from afa_lora.data.records import DataError, Record
from afa_lora.data.sources import HubData

LOCAL_FOLDER = "For data on this machine: data.source=file data.train=PATH, a file or a folder of them."


def read_split(source: HubData, split: str, report: Callable[[str], None]) -> list[Record]:
    """Read every record of one split; one line for it goes to ``report``.

    Raises:
        DataError: the hub cannot be reached, no such data set, configuration or split, nothing to learn from in it, or
            records that `afa_lora.data.forms.read_record` refuses, by their numbers from 0.
    """
    origin = f"{source.name}, split {split!r}"
    rows = ((f"item {number}", row) for number, row in enumerate(load_rows(source.name, source.config, split)))
    records = read_records(origin, rows, source, report)
    if not records:
        raise DataError(f"{origin} holds no records to learn from.")
    return records


def load_rows(
    name: str, config: str | None, split: str, key: str = "data.name", local: str = LOCAL_FOLDER
) -> Iterable[dict[str, Any]]:
    """The rows of a split as they are.

    Args:
        name: the data set's id.
        config: its configuration, where it has several.
        split: the split.
        key: the setting that names the data set, for messages.
        local: what to do for data on this machine, for messages.

    Raises:
        DataError: the hub cannot be reached, no such data set, configuration or split, or it cannot be read.
    """
    try:
        rows: Iterable[dict[str, Any]] = load_dataset(name, config, split=split)
    except ConnectionError as error:
        raise DataError(
            f"{key}={name!r}: the hub cannot be reached, and no copy lies in the cache ({error}). {local}"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{key}={name!r} is not found on the hub, and no folder here has that name: {error} "
            f"Check the spelling; for a private or gated data set, log in with `hf auth login`. {local}"
        ) from error
    except ValueError as error:  # no such split or configuration; the message lists those that there are
        text = str(error).partition("\nExample of usage")[0].replace("\n", " ")
        unknown = split if f'"{split}"' in text else config or ""
        hint = closest(unknown, set(re.findall(r"'([^']+)'", text)) - {unknown})
        raise DataError(f"{key}={name!r}, data.config={config!r}, split {split!r}: {text}{hint}") from error
    except RuntimeError as error:  # the data set is a Python program, which `datasets` no longer runs
        raise DataError(f"{key}={name!r} cannot be loaded: {error}. {local}") from error
    except DatasetsError as error:
        raise DataError(
            f"{key}={name!r}, split {split!r}, cannot be read: {error}: {error.__cause__}. {local}"
        ) from error
    return rows
