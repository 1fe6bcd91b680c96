"""Through lm-evaluation-harness, for real: a task of our own, and the numbers computed by hand beside it."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora import load_adapter
from afa_lora.evaluation import harness
from afa_lora.evaluation.commonsense.settings import weights_fingerprint
from afa_lora.evaluation.harness import HarnessError, HarnessSettings, evaluate_harness, load_tasks, print_harness
from afa_lora.models import ModelError, load_model
from tests.evaluation.towns import DOCS, TASK, save_tasks
from tests.serving.models import save_adapter
from tests.tiny_chat import save_tiny_chat_model

MARKER = "raise SystemExit('code of a task has run')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a task and of a group with it."""
    return save_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the thousands of tasks that come with the harness: it takes seconds to read them."""
    monkeypatch.setattr(harness, "TaskManager", partial(TaskManager, include_defaults=False))


def loaded(base: Path, adapter: Path | None, merge: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_model(str(base))
    if adapter is not None:
        model = load_adapter(model, adapter)
    return (model.merge_and_unload() if merge else model).eval(), tokenizer


def run(base: Path, folder: Path, adapter: Path | None = None, merge: bool = False, **changes: Any) -> dict[str, Any]:
    settings = HarnessSettings(**{"tasks": ["towns"], "include_path": folder, "batch_size": 8, **changes})
    return evaluate_harness(*loaded(base, adapter, merge), load_tasks(settings), settings)


def values(results: dict[str, Any], part: str = "tasks", name: str = "towns") -> dict[str, float]:
    return {row["metric"]: row["value"] for row in results[part][name]["metrics"]}


@torch.no_grad()
def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """acc: the choice with the largest log-probability; acc_norm: with the largest per character."""
    right = {"acc": 0, "acc_norm": 0}
    for doc in DOCS:
        prompt = tokenizer(f"Question: {doc['question']}\nAnswer:")["input_ids"]
        sums = []
        for choice in doc["choices"]:
            answer = tokenizer(f" {choice}")["input_ids"]
            log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)  # (tokens, vocabulary)
            sums.append(sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
        each = [value / len(choice) for value, choice in zip(sums, doc["choices"], strict=True)]
        right["acc"] += sums.index(max(sums)) == doc["right"]
        right["acc_norm"] += each.index(max(each)) == doc["right"]
    return {metric: count / len(DOCS) for metric, count in right.items()}


def test_accuracies_are_those_computed_by_hand(base: Path, folder: Path, tmp_path: Path) -> None:
    plain = save_adapter(tmp_path / "plain", base)
    annealing = save_adapter(tmp_path / "annealing", base, 0.5)
    found = {}
    for name, adapter, merge in (
        ("base", None, False),
        ("adapter", plain, False),
        ("merged", plain, True),
        ("annealing", annealing, False),
    ):
        results = run(base, folder, adapter, merge)
        found[name] = values(results)
        assert found[name] == pytest.approx(by_hand(*loaded(base, adapter, merge))), name
        for row in results["tasks"]["towns"]["metrics"]:
            assert row["stderr"] == pytest.approx(math.sqrt(row["value"] * (1 - row["value"]) / (len(DOCS) - 1)))
    assert found["adapter"] == found["merged"]
    assert len({tuple(numbers.values()) for numbers in found.values()}) == 3  # the others differ: the adapters count


def test_what_is_recorded(base: Path, folder: Path) -> None:
    results = run(base, folder, tasks=["all_towns"], model="tiny", limit=10, num_fewshot=1)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert (results["source"], results["version"]) == ("lm-evaluation-harness", "0.4.13")
    task = results["tasks"]["towns"]
    assert (task["version"], task["num_fewshot"], task["items"], task["items_in_all"]) == (3.0, 1, 10, 40)
    assert [row["filter"] for row in task["metrics"]] == ["none", "none"]
    assert all(row["higher_is_better"] for row in task["metrics"])
    assert values(results, "groups", "all_towns")["acc"] == values(results)["acc"]
    assert results["settings"]["model"] == "tiny"
    assert results["settings"]["limit"] == 10
    assert results["settings"]["fewshot_seed"] == 1234
    assert results["settings"]["weights"] == weights_fingerprint(load_model(str(base))[0])
    assert results["environment"]["torch"] == torch.__version__
    assert results["seconds"] > 0

    console = Console(width=140, record=True)
    print_harness(results, console)
    printed = console.export_text()
    assert "lm-evaluation-harness 0.4.13" in printed
    assert f"{values(results)['acc']:.4f}" in printed
    assert "all_towns" in printed


def test_the_hash_tells_other_items_and_other_prompts(base: Path, folder: Path) -> None:
    hashes = [
        run(base, folder, **changes)["tasks"]["towns"]["hash"]
        for changes in ({}, {"batch_size": 3}, {"limit": 5}, {"num_fewshot": 1}, {"apply_chat_template": True})
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_a_chat_template_that_is_not_there(base: Path, folder: Path) -> None:
    settings = HarnessSettings(tasks=["towns"], include_path=folder, apply_chat_template=True, model="tiny")
    model, tokenizer = load_model(str(base))
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="model='tiny' has no chat template"):
        evaluate_harness(model, tokenizer, load_tasks(settings), settings)


@pytest.mark.parametrize("name", ["other", "of_all", "of_one", "with_changes"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unsafe_code": True}, "other runs code that the model writes"),
        ({"metric_list": [{"metric": "bleu", "hf_evaluate": True}]}, "takes the metric 'bleu' from the hub"),
    ],
)
def test_foreign_code_is_refused_before_any_of_it_runs(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "code.py").write_text(MARKER)
    task = yaml.safe_dump({**TASK, "task": "other", "tag": "of_all", **change})
    (tmp_path / "other.yaml").write_text(f"{task}process_docs: !function code.process\n")
    (tmp_path / "group.yaml").write_text(yaml.safe_dump({"group": "of_one", "task": ["other"]}))
    (tmp_path / "groups.yaml").write_text(
        yaml.safe_dump({"group": "with_changes", "task": [{"group": "of_one", "num_fewshot": 2}]})
    )
    with pytest.raises(HarnessError, match=message):
        load_tasks(HarnessSettings(tasks=[name], include_path=tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_path": "someone/some-data"},
            r"the data of other cannot be had: .*someone/some-data.*include-path",
        ),
        ({"dataset_kwargs": {"data_files": "none.jsonl"}}, r"the data of other cannot be had: .*none\.jsonl"),
        ({"doc_to_texts": "{{question}}"}, "other cannot be loaded: TypeError: .*doc_to_texts"),
        ({"output_type": "choice"}, "other cannot be loaded: ValueError: .*'choice'"),
        ({"dataset_path": "json", "doc_to_image": "picture"}, "other shows pictures or sounds"),
    ],
)
def test_a_task_that_cannot_be_loaded(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    task = yaml.safe_load((folder / "towns.yaml").read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**task, "task": "other", **change}))
    with pytest.raises(HarnessError, match=message):
        load_tasks(HarnessSettings(tasks=["other"], include_path=tmp_path))


def test_names_that_are_not_known(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"no task, group or tag 'town'\. The closest ones: towns, all_towns\."):
        load_tasks(HarnessSettings(tasks=["towns", "town"], include_path=folder))
    with pytest.raises(HarnessError, match="there is no such folder"):
        load_tasks(HarnessSettings(tasks=["towns"], include_path=tmp_path / "nowhere"))
