"""Atomic writes: the old content or the new one, never a part, and nothing left behind."""

import os
from pathlib import Path

import pytest

from afa_lora.files import folder_atomic, remove_leftovers, sha256, write_atomic


def test_write_replaces_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, "β")
    assert path.read_bytes() == "β".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("old", "new"):
        with folder_atomic(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "file").write_text(content)
            assert not path.exists() or (path / "sub" / "file").read_text() == "old"
        assert (path / "sub" / "file").read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_block_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with folder_atomic(path) as temporary:
        (temporary / "file").write_text("old")

    def fail() -> None:
        with folder_atomic(path) as temporary:
            (temporary / "file").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_old_folder_is_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()
    rename = os.replace

    def fail_to_move_in(source: Path, target: Path) -> None:
        if target == folder and (Path(source) / "new").exists():
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_to_move_in)
    with pytest.raises(OSError, match="no"), folder_atomic(folder) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".model.0123abcd").mkdir()
    (tmp_path / ".model.0123abcd" / "model.safetensors").touch()
    (tmp_path / ".results.json.89abcdef").touch()
    kept = [tmp_path / name for name in (".lock", ".gitignore", "model", ".notes.md", ".a.0123ABCD")]
    for path in kept:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
