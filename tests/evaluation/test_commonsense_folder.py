"""An evaluation's folder: killed at any point it goes on, finished it is read, and another's is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import AutoTokenizer, LlamaForCausalLM

from afa_lora.evaluation.commonsense import (
    EvaluationError,
    EvaluationSettings,
    EvaluationStopped,
    evaluate_commonsense,
    read_evaluation,
)
from afa_lora.evaluation.commonsense.folder import read_lines
from afa_lora.evaluation.commonsense.likelihood import Likelihood, Question
from afa_lora.evaluation.commonsense.settings import weights_fingerprint
from tests.evaluation.commonsense import MANY, make_items, run
from tests.tiny_chat import save_tiny_chat_model

ROOT = Path(__file__).parents[2]
PROTOCOLS = ("paper", "likelihood")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


def answers(folder: Path) -> list[dict[str, Any]]:
    """The items as they are written, but for how long they took."""
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_lines(folder / "items.jsonl")
    ]


@pytest.mark.integration
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    model: Path, tmp_path: Path, protocol: str
) -> None:
    killed, items = tmp_path / "killed", tmp_path / "killed" / "items.jsonl"
    command = [sys.executable, "-m", "tests.evaluation.commonsense", str(model), str(killed), protocol]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        while process.poll() is None and not (items.is_file() and items.read_bytes().count(b"\n") > 5):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = len(read_lines(items))
    assert 5 < done < 2 * MANY
    assert not (killed / "results.json").exists()
    with items.open("ab") as stream:
        stream.write(b'{"task": "boolq", "ind')  # a kill in the middle of a line leaves this
    run(model, killed, MANY, protocol=protocol)
    whole = run(model, tmp_path / "whole", MANY, protocol=protocol)
    assert answers(killed) == answers(tmp_path / "whole")
    assert read_evaluation(killed).correct == whole.correct
    assert {task: set(correct) for task, correct in whole.correct.items()} == {
        task: set(range(MANY)) for task in ("boolq", "ARC-Easy")
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cut_at_any_byte_it_ends_the_same(model: Path, tmp_path: Path, protocol: str) -> None:
    whole = tmp_path / "whole"
    run(model, whole, protocol=protocol)
    expected, content = answers(whole), (whole / "items.jsonl").read_bytes()
    (whole / "results.json").unlink()
    lines = content.splitlines(keepends=True)
    for kept in (0, 1, len(lines[0]), len(lines[0]) + 7, sum(map(len, lines[:7])) - 1, len(content) - 1, len(content)):
        (whole / "items.jsonl").write_bytes(content[:kept])
        run(model, whole, protocol=protocol)
        assert answers(whole) == expected
        (whole / "results.json").unlink()


def test_what_is_finished_is_read_and_not_computed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model, tmp_path / "evaluation")
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *args, **kwargs: pytest.fail("the model was run"))
    again = run(model, tmp_path / "evaluation", batch_size=3, model="another name")  # neither changes an answer
    assert again.results == first.results
    assert again.settings == first.settings


def test_ctrl_c_keeps_what_is_answered(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, batches = Likelihood.score, []

    def interrupted(self: Likelihood, questions: Sequence[Question]) -> list[list[float]]:
        batches.append(questions)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return score(self, questions)

    monkeypatch.setattr(Likelihood, "score", interrupted)
    with pytest.raises(EvaluationStopped, match=r"4 of 10 items are answered.* goes on from there"):
        run(model, tmp_path / "evaluation", protocol="likelihood")
    assert len(answers(tmp_path / "evaluation")) == 4
    with pytest.raises(EvaluationError, match="not finished: 4 items"):
        read_evaluation(tmp_path / "evaluation")
    assert run(model, tmp_path / "evaluation", protocol="likelihood").results["average"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "likelihood"}, "protocol: 'paper' → 'likelihood'"),
        ({"max_new_tokens": 7}, "max_new_tokens: 6 → 7"),
        ({"beams": 2}, "beams: 1 → 2"),
        ({"prompt": "chat"}, "prompt: 'alpaca' → 'chat'"),
        ({"limit": 9}, "limit: (not set) → 9"),
        ({"count": 4}, "data: "),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_settings_is_refused(
    model: Path, tmp_path: Path, settings: dict[str, Any], message: str, finished: bool
) -> None:
    folder = tmp_path / "evaluation"
    run(model, folder)
    if not finished:
        (folder / "results.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(EvaluationError) as refused:
        run(model, folder, **settings)
    assert message in str(refused.value)
    assert "weights" not in str(refused.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "evaluation", model="the first")
    other = save_tiny_chat_model(tmp_path / "other")
    loaded = LlamaForCausalLM.from_pretrained(other)
    loaded.model.layers[1].mlp.up_proj.weight.data[:, 0] += 1e-3
    loaded.save_pretrained(other)
    with pytest.raises(EvaluationError, match=r"weights: '\w+' \(the first\) → '\w+' \(the second \+ its adapter\)"):
        run(other, tmp_path / "evaluation", model="the second", adapter="its adapter")


def test_a_folder_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EvaluationError, match=r"not of an evaluation \(notes.txt\)"):
        run(model, tmp_path)
    with pytest.raises(EvaluationError, match="a file is in its place"):
        run(model, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_processes_in_one_folder(model: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(EvaluationError, match="Another process is evaluating"):
        run(model, tmp_path)


@pytest.mark.parametrize(
    ("line", "fault"), [('{"task": ]', "line 3: Expecting value"), ("17", "line 3 is not an answered")]
)
def test_a_damaged_line_is_named(model: Path, tmp_path: Path, line: str, fault: str) -> None:
    run(model, tmp_path / "evaluation")
    items = tmp_path / "evaluation" / "items.jsonl"
    lines = items.read_text().splitlines(keepends=True)
    items.write_text("".join([*lines[:2], line + "\n", *lines[2:]]))
    with pytest.raises(EvaluationError, match=f"items.jsonl, {fault}"):
        read_evaluation(tmp_path / "evaluation")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda lines: lines[:-1], "holds 4 items of ARC-Easy, {right} of them right"),
        (lambda lines: [*lines[:-1], lines[-2]], "holds 4 items of ARC-Easy"),
        (lambda lines: [line for line in lines if "boolq" not in line], "holds 0 items of boolq"),
        (lambda lines: [*lines, lines[0].replace("boolq", "piqa")], "holds 1 item of piqa"),
        (lambda lines: [line.replace('"correct": true', '"correct": false') for line in lines], "0 of them right"),
        (None, "items.jsonl is not there"),
    ],
)
def test_items_that_are_not_those_of_the_numbers_are_refused(
    model: Path, tmp_path: Path, damage: Callable[[list[str]], list[str]] | None, fault: str
) -> None:
    folder = tmp_path / "evaluation"
    whole = run(model, folder, protocol="likelihood")
    items = folder / "items.jsonl"
    lines = items.read_text().splitlines(keepends=True)
    assert "boolq" in lines[0]
    assert "ARC-Easy" in lines[-1]
    assert any('"correct": true' in line for line in lines)
    if damage is None:
        items.unlink()
    else:
        items.write_text("".join(damage(lines)))
    right = sum(read["correct"] for read in read_lines(items) if read["task"] == "ARC-Easy")
    with pytest.raises(EvaluationError) as refused:
        read_evaluation(folder)
    message = str(refused.value)
    assert fault.format(right=right) in message
    assert str(items) in message
    assert f"remove {folder / 'results.json'} and evaluate again" in message
    if damage is None:  # the remedy is one
        (folder / "results.json").unlink()
        assert run(model, folder, protocol="likelihood").correct == whole.correct


def test_no_evaluation_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        read_evaluation(tmp_path)
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    with pytest.raises(EvaluationError, match="not of an evaluation of the eight tasks"):
        read_evaluation(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"results\.json is damaged"):
        read_evaluation(tmp_path)


def test_nothing_to_evaluate_and_an_item_twice(model: Path, tmp_path: Path) -> None:
    loaded, tokenizer = LlamaForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    with pytest.raises(EvaluationError, match="no items"):
        evaluate_commonsense(loaded, tokenizer, [], EvaluationSettings(), tmp_path)
    with pytest.raises(EvaluationError, match="twice"):
        evaluate_commonsense(loaded, tokenizer, make_items(1) * 2, EvaluationSettings(), tmp_path)


def test_the_numbers_are_those_of_the_items(model: Path, tmp_path: Path) -> None:
    found = run(model, tmp_path / "evaluation", count=7, protocol="likelihood")
    lines = answers(tmp_path / "evaluation")
    for task, numbers in found.results["tasks"].items():
        rights = [line["given"] == line["answer"] for line in lines if line["task"] == task]
        assert (numbers["correct"], numbers["items"]) == (sum(rights), 7)
        assert numbers["accuracy"] == sum(rights) / 7
        assert numbers["interval_95"][0] <= numbers["accuracy"] <= numbers["interval_95"][1]
        assert found.correct[task] == {
            line["index"]: line["given"] == line["answer"] for line in lines if line["task"] == task
        }
    accuracies = [numbers["accuracy"] for numbers in found.results["tasks"].values()]
    assert found.results["average"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert found.results["unparsed"] is None
    assert found.results["source"] == "afa-lora"
    assert found.results["items_per_second"] == pytest.approx(14 / found.results["seconds"], rel=0.05)
    assert json.loads((tmp_path / "evaluation" / "settings.json").read_text()) == found.results["settings"]


def test_fingerprint_of_weights(tiny_llama: LlamaForCausalLM, tiny_tied_llama: LlamaForCausalLM) -> None:
    before = weights_fingerprint(tiny_llama)
    assert weights_fingerprint(tiny_llama) == before
    assert weights_fingerprint(tiny_tied_llama) != before
    norm = tiny_llama.model.norm.weight.data
    norm[-1] += 1e-6
    assert weights_fingerprint(tiny_llama) != before
    norm[-1] = 1.0
    assert weights_fingerprint(tiny_llama) == before
    assert weights_fingerprint(tiny_llama.bfloat16()) != before
