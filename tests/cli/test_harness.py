"""``afa eval harness``: from the command line to results.json, with all the tasks that come with the harness."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Afa
from tests.evaluation.towns import DOCS, save_tasks
from tests.serving.models import save_adapter


def test_an_adapter_is_evaluated_and_its_results_are_kept(afa: Afa, chat_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", chat_model)
    out = tmp_path / "deep" / "[out]"
    tasks = ("--tasks", "towns, ", "--include-path", save_tasks(tmp_path))
    done = afa("eval", "harness", "--model", chat_model, "--adapter", adapter, *tasks, "--limit", 30, "--out", out)
    assert done.code == 0
    assert "lm-evaluation-harness 0.4.13" in done.out
    results = json.loads((out / "results.json").read_text())
    task = results["tasks"]["towns"]
    assert (task["items"], task["items_in_all"]) == (30, len(DOCS))
    for row in task["metrics"]:
        assert row["metric"] in done.out
        assert f"{row['value']:.4f}" in done.out
    assert results["source"] == "lm-evaluation-harness"
    assert results["settings"]["model"] == str(chat_model)
    assert results["settings"]["adapter"] == str(adapter)

    again = afa("eval", "harness", "--model", chat_model, *tasks, "--out", out)
    assert again.code == 2
    assert "holds results already" in again.err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("arc_esy", "knows no task, group or tag 'arc_esy'. The closest ones: arc_easy,"),
        ("arc_easy", "the data of arc_easy cannot be had: Couldn't reach 'allenai/ai2_arc' on the Hub"),
        ("humaneval", "humaneval runs code that the model writes"),
    ],
)
def test_a_task_that_cannot_be_had_is_told_before_the_model_is_loaded(
    afa: Afa, tmp_path: Path, task: str, message: str
) -> None:
    refused = afa("eval", "harness", "--model", "./nowhere", "--tasks", task, "--out", tmp_path / "out")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].startswith("Error: ")
    assert message in refused.err
    assert not (tmp_path / "out").exists()


def test_without_the_package(afa: Afa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "afa_lora.evaluation.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused = afa("eval", "harness", "--model", "smollm2-135m", "--tasks", "arc_easy")
    assert refused.code == 2
    assert refused.err == "Error: The package lm_eval is missing. Run: pip install 'afa-lora[harness]'\n"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--tasks", ["--model", "smollm2-135m"]),
        ("--tasks", ["--model", "smollm2-135m", "--tasks", " , "]),
        ("--limit", ["--model", "smollm2-135m", "--tasks", "towns", "--limit", "0"]),
        ("--model", ["--tasks", "towns"]),
    ],
)
def test_options_that_are_lacking_or_say_nothing(afa: Afa, option: str, words: list[str]) -> None:
    refused = afa("eval", "harness", *words)
    assert refused.code == 2
    assert option in refused.err
