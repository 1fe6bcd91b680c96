"""A tiny study on disk."""

from pathlib import Path
from typing import Any

import pytest

from afa_lora.reproduce.jobs import Experiment, load_experiment
from tests import tiny_study
from tests.tiny_chat import save_tiny_chat_model

suite, tasks = tiny_study.suite, tiny_study.tasks


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(chat_model: Path) -> dict[str, Any]:
    """The suite, to be changed."""
    return tiny_study.tiny_suite(chat_model)


@pytest.fixture
def experiment(suite: Path, tasks: Path, tmp_path: Path) -> Experiment:
    """All arms of it with one seed."""
    return load_experiment(suite, "tiny", tmp_path / "out", tasks)
