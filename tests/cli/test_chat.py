"""``afa chat`` from the question to both answers."""

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from afa_lora.settings import dump_yaml, read_settings
from tests.cli.conftest import Afa


@pytest.fixture
def run(afa: Afa, chat_model: Path, tmp_path: Path) -> Path:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"prompt": f"Say yes to {i}.", "completion": "yes"} for i in range(24)]))
    settings = {
        "model": str(chat_model),
        "output": str(tmp_path / "run"),
        "data": {"source": "file", "train": str(data), "test_items": 0},
        "adapter": {"r": 8, "lora_alpha": 16},
        "train": {"max_steps": 16, "learning_rate": 0.02, "gradient_checkpointing": False, "save_strategy": "no"},
        "merge": False,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    assert afa("sft", recipe).code == 0
    return tmp_path / "run"


def test_one_question_is_answered_twice(afa: Afa, run: Path) -> None:
    done = afa("chat", run, "--once", "Say yes to 3.", "--max-new-tokens", "4")
    assert done.code == 0
    base, adapter = done.out.partition("[adapter] ")[::2]
    assert base.startswith("[base] ")
    assert adapter.strip() == "yes"
    assert "yes" not in base


def test_a_conversation_ends_with_quit_or_the_input(afa: Afa, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lines in ("Say yes to 3.\n/reset\nSay yes to 4.\n/quit\nSay yes to 5.\n", "Say yes to 3.\n\nSay yes to 4.\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        done = afa("chat", run, "--max-new-tokens", "4")
        assert done.code == 0
        assert done.out.count("[adapter] ") == 2
        assert ("Forgotten." in done.out) == ("/reset" in lines)


def test_a_folder_without_an_adapter(afa: Afa, tmp_path: Path) -> None:
    refused = afa("chat", tmp_path, "--once", "Hello")
    assert refused.code == 2
    assert "neither an adapter nor a run" in refused.err
    assert "There is no folder" in afa("chat", tmp_path / "gone").err


def test_a_models_folder_and_another_base(afa: Afa, run: Path, chat_model: Path, tmp_path: Path) -> None:
    assert "is a model's folder" in afa("chat", chat_model, "--once", "Hello").err
    base = shutil.copytree(chat_model, tmp_path / "moved")
    recipe, _ = read_settings(run / "recipe.yaml", ["model=model"])
    (run / "recipe.yaml").write_text(dump_yaml(recipe))
    refused = afa("chat", run, "--once", "Hello")
    assert refused.code == 2
    assert f"looked for in {Path.cwd()}" in refused.err
    assert "--base" in refused.err
    done = afa("chat", run, "--base", base, "--once", "Say yes to 3.", "--max-new-tokens", "4")
    assert done.out.partition("[adapter] ")[2].strip() == "yes"


def test_what_is_no_utf_8_is_replaced(afa: Afa, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for errors in ("strict", "surrogateescape"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff\n"), "utf-8", errors))
        done = afa("chat", run, "--max-new-tokens", "4")
        assert done.code == 0
        assert done.out.count("[adapter] ") == 1
    assert afa("chat", run, "--once", "caf\udce9", "--max-new-tokens", "4").code == 0


def test_a_conversation_that_is_too_long_can_be_forgotten(afa: Afa, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'long ' * 120}\n/reset\nSay yes to 3.\n"))
    done = afa("chat", run, "--max-new-tokens", "4")
    assert done.code == 0
    assert "the conversation is too long" in done.out
    assert "holds 512" in done.out
    assert done.out.rpartition("[adapter] ")[2].strip() == "yes"
    refused = afa("chat", run, "--once", "long " * 120)
    assert refused.code == 2
    assert "too long" in refused.err
