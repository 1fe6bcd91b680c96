"""``afa eagle``: from the features to the export, and the quickstart, on a tiny target."""

import json
import sys
from pathlib import Path

import pytest

from afa_lora.data import sharegpt
from afa_lora.eagle.evaluation.questions import load_questions
from tests.cli.conftest import Afa
from tests.tiny_study import save_tiny_drafts_data


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Conversations and questions; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return save_tiny_drafts_data(tmp_path / "data")


def test_a_draft_goes_from_the_features_to_the_export(afa: Afa, chat_model: Path, data: Path) -> None:
    settings = (
        "quickstart",
        f"model={chat_model}",
        f"data.conversations=[{data / 'conversations'}]",
        "data.limit=6",
        "data.test_items=2",
        "train.num_train_epochs=1",
        "features.folder=features",
        "output=run",
    )
    missing = afa("eagle", "train", *settings)
    assert missing.code == 2
    assert "afa eagle features" in missing.err
    written = afa("eagle", "features", *settings)
    assert written.code == 0, written.err
    assert "tokens in 2 file(s)" in written.out
    planned = afa("eagle", "train", *settings, "output=planned", "--dry-run")
    assert planned.code == 0, planned.err
    assert not Path("planned").exists()
    trained = afa("eagle", "train", *settings)
    assert trained.code == 0, trained.err
    assert Path("run/draft/model.safetensors").is_file()

    measured = afa(
        *("eagle", "eval", "run", "untrained", "--model", chat_model, "--data", data / "eagle", "--sets", "red,blue"),
        *("--limit", 1, "--max-new-tokens", 4, "--shapes", "chain:2", "--out", "measured"),
    )
    assert measured.code == 0, measured.err
    scores = json.loads(Path("measured/results.json").read_text())["scores"]
    assert [score["draft"] for score in scores] == ["run", "untrained"]

    exported = afa("eagle", "export", "run", "--format", "vllm", "--out", "served")
    assert exported.code == 0, exported.err
    assert json.loads(Path("served/config.json").read_text())["num_hidden_layers"] == 1


def test_the_quickstart_compares_three_drafts(afa: Afa, chat_model: Path, data: Path) -> None:
    settings = (
        f"model={chat_model}",
        "data.limit=6",
        "data.test_items=2",
        "train.num_train_epochs=1",
        "evaluate.sets=[red]",
        "evaluate.limit=1",
        "evaluate.max_new_tokens=4",
        "evaluate.shapes=[chain:2]",
    )
    done = afa("eagle", "quickstart", *settings, "--data", data, "--out", "quick")
    assert done.code == 0, done.err
    (study,) = json.loads(Path("quick/results.json").read_text())["studies"]
    assert [arm["name"] for arm in study["arms"]] == ["Untrained draft", "EAGLE", "EAGLE + LoRA", "EAGLE + AFA SiLU"]
    assert Path("quick/report.html").is_file()


def test_without_data_the_quickstart_asks_what_the_package_holds(
    afa: Afa, chat_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last conversations are the questions, its first ones are trained on."""
    entries = [json.loads(line) for line in (data / "conversations/sharegpt_tiny/part.jsonl").read_text().splitlines()]
    entries.append({"id": "long_0", "conversations": [{"from": "human", "value": "x" * 601}]})
    entries.append({"id": "led_0", "conversations": [{"from": "gpt", "value": "Hello."}]})
    package = data / "package.json"
    package.write_text(json.dumps(entries)[:-20])  # the published file breaks off too
    monkeypatch.setattr(sharegpt, "package_file", lambda: package)
    monkeypatch.setattr(sys.modules["afa_cli.eagle.quickstart"], "OPENINGS", 2)  # its function has the same name
    settings = (
        f"model={chat_model}",
        "data.limit=6",
        "data.test_items=2",
        "train.num_train_epochs=1",
        "evaluate.max_new_tokens=4",
        "evaluate.shapes=[chain:2]",
    )
    done = afa("eagle", "quickstart", *settings, "--out", "quick")
    assert done.code == 0, done.err
    asked = load_questions(Path("quick-questions/eagle"), [sharegpt.NAME])
    assert [question.turns for question in asked] == [("Say 10 twice.",), ("Say 11 twice.",)]
    (study,) = json.loads(Path("quick/results.json").read_text())["studies"]
    assert [task["name"] for task in study["tasks"]] == [sharegpt.NAME]
