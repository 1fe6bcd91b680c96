"""A tiny study on disk."""

from pathlib import Path
from typing import Any

import pytest

from afa_lora.reproduce.jobs import Experiment, load_experiment
from afa_lora.settings import dump_yaml
from tests.tiny_chat import save_tiny_chat_model
from tests.tiny_study import save_tiny_tasks, tiny_suite


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the eight tasks."""
    return save_tiny_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def settings(chat_model: Path) -> dict[str, Any]:
    """The suite, to be changed."""
    return tiny_suite(chat_model)


@pytest.fixture
def suite(settings: dict[str, Any], tmp_path: Path) -> Path:
    """The file of that suite."""
    path = tmp_path / "table0.yaml"
    path.write_text(dump_yaml(settings))
    return path


@pytest.fixture
def experiment(suite: Path, tasks: Path, tmp_path: Path) -> Experiment:
    """All arms of it with one seed."""
    return load_experiment(suite, "tiny", tmp_path / "out", tasks)
