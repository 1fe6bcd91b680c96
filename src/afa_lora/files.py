"""Files that are either there whole or not at all: written beside their place, flushed to disk, renamed into it."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RANDOM_BYTES = 4  # in the name of what is being written
CHUNK = 1 << 20  # bytes read at a time when hashing


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` (text as UTF-8) to ``path``; a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends without an error it becomes ``path``.

    A folder that is at ``path`` already is replaced then, and stays untouched if the block fails.
    """
    temporary, replaced = _beside(path), _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            flush(file)
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
    except BaseException:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)
    flush(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of `write_atomic` or `folder_atomic` has left in ``folder``."""
    for path in folder.glob(f".*.{'[0-9a-f]' * 2 * RANDOM_BYTES}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(RANDOM_BYTES)}")


def flush(path: Path) -> None:
    """Have a file's content, or a folder's entries, on disk when this returns."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no descriptor for a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
