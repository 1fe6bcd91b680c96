"""``afa eval commonsense`` and ``afa eval compare`` on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from afa_lora import AfaLoraConfig
from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.loading import load_evaluated
from afa_lora.models import load_model
from tests.cli.conftest import Afa

RECORDS = {
    "boolq": ("Please answer the following question with true or false, question: is {i} odd?", ("true", "false")),
    "piqa": ("Please choose the correct solution to the question: {i}?", ("solution1", "solution2")),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six test items of two of the tasks, in the LLM-Adapters form."""
    for task, (question, choices) in RECORDS.items():
        listed = "" if task == "boolq" else "\n\nSolution1: yes\n\nSolution2: no"
        records = [
            {
                "instruction": f"{question.format(i=i)}{listed}\n\nAnswer format: {'/'.join(choices)}",
                "input": "",
                "output": f"the correct answer is {choices[i % 2]}",
                "answer": choices[i % 2],
            }
            for i in range(6)
        ]
        (tmp_path / "data" / task).mkdir(parents=True)
        (tmp_path / "data" / task / "test.json").write_text(json.dumps(records))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adapted(model: Path, folder: Path, config: LoraConfig) -> Path:
    """An adapter that changes much."""
    torch.manual_seed(1)
    base, _ = load_model(str(model))
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def lora(model: Path, folder: Path, beta: float | None = None) -> Path:
    shared = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False}
    if beta is None:
        return adapted(model, folder, LoraConfig(**shared, task_type="CAUSAL_LM"))
    return adapted(model, folder, AfaLoraConfig(**shared, task_type="CAUSAL_LM", beta=beta))


def test_from_the_model_to_the_table_and_on(afa: Afa, chat_model: Path, data: Path) -> None:
    options = ("--data", data, "--tasks", "boolq,piqa", "--limit", "4", "--max-new-tokens", "3")
    done = afa("eval", "commonsense", "--model", chat_model, *options)
    assert done.code == 0, done.err
    folder = next(Path("runs/eval").iterdir())
    assert folder.name.endswith("-paper-boolq-piqa-limit4")
    results = json.loads((folder / "results.json").read_text())
    assert {task: numbers["items"] for task, numbers in results["tasks"].items()} == {"boolq": 4, "piqa": 4}
    assert results["settings"]["model"] == str(chat_model)
    for text in ("BoolQ", "PIQA", "average", "unparsed", str(folder)):
        assert text in done.out
    again = afa("eval", "commonsense", "--model", chat_model, *options)
    assert again.code == 0
    assert again.out.splitlines()[-5:] == done.out.splitlines()[-5:]
    likely = afa("eval", "commonsense", "--model", chat_model, *options, "--protocol", "likelihood", "--prompt", "chat")
    assert likely.code == 0, likely.err
    assert len(list(Path("runs/eval").iterdir())) == 2
    refused = afa("eval", "commonsense", "--model", chat_model, *options, "--out", folder, "--beams", "2")
    assert refused.code == 2
    assert "beams: 1 → 2" in refused.err


def test_two_models_are_compared(afa: Afa, chat_model: Path, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, "--tasks", "boolq,piqa", "--protocol", "likelihood")
    adapter = lora(chat_model, tmp_path / "adapter")
    base = afa("eval", "commonsense", "--model", chat_model, *options, "--out", "base")
    tuned = afa("eval", "commonsense", "--model", chat_model, "--adapter", adapter, *options, "--out", "tuned")
    assert (base.code, tuned.code) == (0, 0), base.err + tuned.err
    compared = afa("eval", "compare", "base", "tuned")
    assert compared.code == 0, compared.err
    assert "A is base, B is tuned." in compared.out
    assert "PIQA" in compared.out
    (tmp_path / "tuned" / "results.json").unlink()
    refused = afa("eval", "compare", "base", "tuned")
    assert refused.code == 2
    assert "not finished: 12 items are answered" in refused.err


def test_bad_input(afa: Afa, chat_model: Path, data: Path) -> None:
    begin = ("eval", "commonsense", "--model", chat_model, "--data", data)
    typo = afa(*begin, "--tasks", "boolq,pica")
    assert typo.code == 2
    assert "'piqa'" in typo.err
    missing = afa(*begin, "--tasks", "boolq,winogrande")
    assert missing.code == 2
    assert "winogrande" in missing.err
    beams = afa(*begin, "--protocol", "likelihood", "--beams", "4")
    assert beams.code == 2
    assert "likelihood generates nothing" in beams.err
    assert afa("eval", "commonsense", "--data", data).code == 2
    assert not Path("runs").exists()


def test_linear_adapters_are_merged_and_others_are_not(chat_model: Path, tmp_path: Path) -> None:
    ids = torch.arange(5, 25)[None]
    plain = load_evaluated(str(chat_model))[0](ids).logits
    for beta in (None, 0.5):
        said: list[str] = []
        adapter = lora(chat_model, tmp_path / f"adapter-{beta}", beta)
        model, _ = load_evaluated(None, adapter, report=said.append)
        assert not model.training
        assert hasattr(model, "peft_config") == bool(beta)
        assert ["still annealing, β = 0.5" in line for line in said] == ([True] if beta else [])
        assert not torch.allclose(model(ids).logits, plain, atol=0.1)
        by_name, _ = load_evaluated(str(adapter), report=said.append)  # an adapter's folder in place of a model
        assert torch.equal(by_name(ids).logits, model(ids).logits)


def test_of_a_run_the_merged_model_counts(chat_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lora(chat_model, run / "adapter")
    (run / "recipe.yaml").write_text(f"model: {chat_model}\n")
    ids = torch.arange(5, 25)[None]
    model, tokenizer = load_evaluated(str(run))
    before = model(ids).logits
    model.lm_head.weight.data *= 2  # to see which of the two is taken
    model.save_pretrained(run / "model")
    tokenizer.save_pretrained(run / "model")
    assert torch.equal(load_evaluated(str(run))[0](ids).logits, model(ids).logits)
    assert torch.equal(load_evaluated(None, run)[0](ids).logits, before)
    assert load_evaluated(str(run), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_every_task_has_its_name(real_data: Path, afa: Afa, chat_model: Path) -> None:
    options = ("--data", real_data / "commonsense", "--limit", "1", "--max-new-tokens", "1", "--out", "all")
    done = afa("eval", "commonsense", "--model", chat_model, *options)
    assert done.code == 0, done.err
    for task in TASKS.values():
        assert task.title in done.out
