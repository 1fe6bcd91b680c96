"""Atomic writes: the old content or the new one, never a part, and nothing left behind."""

from pathlib import Path

import pytest

from afa_lora.files import folder_atomic, sha256, write_atomic


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
