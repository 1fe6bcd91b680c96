"""Where models come from. A stand-in converts the embedded default here; the run on real input converts it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from afa_lora import models
from afa_lora.models import ModelError, cache_folder, embedded_folder, load_model
from tests.tiny_chat import save_tiny_chat_model

NAME = "smollm2-135m"


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the conversion by one that writes a tiny model, and record each."""
    made: list[Path] = []

    def convert(embedded: models.EmbeddedModel, folder: Path) -> None:
        save_tiny_chat_model(folder)
        (folder / models.ORIGIN).write_text(models._origin(embedded, folder / models.WEIGHTS))
        made.append(folder)

    monkeypatch.setenv("AFA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_convert", convert)
    return made


def test_a_local_folder_loads_in_float32_with_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(save_tiny_chat_model(tmp_path)))
    assert model.dtype == torch.float32
    assert tokenizer.chat_template is not None
    assert load_model(str(tmp_path), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_embedded_model_is_converted_once_and_says_so(conversions: list[Path]) -> None:
    said: list[str] = []
    for _ in range(2):
        load_model(NAME, report=said.append)
    assert conversions == [cache_folder() / NAME]
    assert len(said) == 1
    assert "once" in said[0]


@pytest.mark.parametrize("damage", ["weights", "origin", "no weights"])
def test_a_damaged_cache_is_converted_anew(conversions: list[Path], damage: str) -> None:
    folder = embedded_folder(NAME)
    if damage == "weights":
        content = bytearray((folder / models.WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / models.WEIGHTS).write_bytes(content)
    elif damage == "origin":
        (folder / models.ORIGIN).write_text("{")
    else:
        (folder / models.WEIGHTS).unlink()
    embedded_folder(NAME)
    assert len(conversions) == 2


def test_those_who_ask_at_the_same_time_convert_once(conversions: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:  # the lock is on an open file: threads exclude each other as processes do
        folders = set(pool.map(lambda _: embedded_folder(NAME), range(4)))
    assert conversions == list(folders)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "afa-lora"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/afa-lora")
    monkeypatch.setenv("AFA_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_a_missing_package_names_its_requirement() -> None:
    embedded = models.EmbeddedModel("no_such_package", "no-such-package==1", "a.gguf", "0", "a/b")
    with pytest.raises(ModelError, match="pip install 'no-such-package==1'"):
        embedded.source()


def test_another_file_in_the_package_is_refused() -> None:
    embedded = models.EmbeddedModel("pytest", "pytest==0", "__init__.py", "0", "a/b")
    with pytest.raises(ModelError, match="is not the known file"):
        embedded.source()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "Did you mean 'smollm2-135m'"),
        ("./nowhere", "there is no such folder"),
        ("/no/where", "there is no such folder"),
        ("nobody/nothing", "loading it from the hub failed"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"without a config\.json"):
        load_model(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = save_tiny_chat_model(tmp_path)
    state: dict[str, Any] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(folder))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = save_tiny_chat_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()
