"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
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
    rows = ((f"item {number}", row) for number, row in enumerate(_load(source, split)))
    records = read_records(origin, rows, source, report)
    if not records:
        raise DataError(f"{origin} holds no records to learn from.")
    return records


def _load(source: HubData, split: str) -> Any:
    try:
        return load_dataset(source.name, source.config, split=split)
    except ConnectionError as error:
        raise DataError(
            f"data.name={source.name!r}: the hub cannot be reached, and no copy lies in the cache ({error}). "
            f"{LOCAL_FOLDER}"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"data.name={source.name!r} is not found on the hub, and no folder here has that name: {error} "
            f"Check the spelling; for a private or gated data set, log in with `hf auth login`. {LOCAL_FOLDER}"
        ) from error
    except ValueError as error:  # no such split or configuration; the message lists those that there are
        text = str(error).partition("\nExample of usage")[0].replace("\n", " ")
        unknown = split if f'"{split}"' in text else source.config or ""
        hint = closest(unknown, set(re.findall(r"'([^']+)'", text)) - {unknown})
        raise DataError(
            f"data.name={source.name!r}, data.config={source.config!r}, split {split!r}: {text}{hint}"
        ) from error
    except RuntimeError as error:  # the data set is a Python program, which `datasets` no longer runs
        raise DataError(f"data.name={source.name!r} cannot be loaded: {error}. {LOCAL_FOLDER}") from error
    except DatasetsError as error:
        raise DataError(
            f"data.name={source.name!r}, split {split!r}, cannot be read: {error}: {error.__cause__}. {LOCAL_FOLDER}"
        ) from error
