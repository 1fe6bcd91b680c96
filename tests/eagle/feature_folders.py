"""What the tests of features share: a recipe, the bytes of a folder, and a write that is stopped."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from afa_lora.eagle.features import write
from afa_lora.eagle.recipe import parse_recipe
from afa_lora.eagle.target import features_of


def recipe(model: Path, source: Path, folder: Path | None, **settings: Any) -> Any:
    """A recipe with small files and batches; ``data`` and ``features`` are changed by key."""
    return parse_recipe(
        {
            "model": str(model),
            "output": "unused",
            "data": {"conversations": [str(source)], "test_items": 3, "max_length": 300, **settings.get("data", {})},
            "load": settings.get("load", {}),
            "features": {
                "folder": folder and str(folder),
                "shard_megabytes": 1,
                "batch_tokens": 700,
                "dtype": "float32",
                **settings.get("features", {}),
            },
        }
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@contextmanager
def stopping(after: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> Iterator[None]:
    """Have a signal arrive when the target has read so many batches."""
    read = 0

    def reading(*arguments: Any) -> Any:
        nonlocal read
        read += 1
        if read > after:
            signal.raise_signal(number)
        return features_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(write, "features_of", reading)
        yield
