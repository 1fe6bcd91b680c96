"""Calling ``afa`` in this process, as the console script does."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny_chat import save_tiny_chat_model


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Afa = Callable[..., Outcome]


@pytest.fixture
def afa(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Afa:
    """``afa("inspect", folder)`` gives exit code and output; an unexpected error is raised, as it would print."""
    from afa_cli import main

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["afa", *map(str, arguments)])
        capsys.readouterr()  # what the test itself has printed so far
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))
