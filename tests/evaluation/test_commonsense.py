"""The protocols: prompts, what is generated, where it may stop, and what counts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from afa_lora.core.errors import AfaLoraError
from afa_lora.data.commonsense import find_answer
from afa_lora.evaluation.commonsense import (
    EvaluationError,
    EvaluationSettings,
    evaluate_commonsense,
    print_evaluation,
    read_evaluation,
)
from afa_lora.evaluation.commonsense.folder import read_lines
from afa_lora.evaluation.commonsense.protocols import Generated, Scored, render_prompts
from afa_lora.evaluation.generate import evaluating, generate_batch, longest_first
from tests.evaluation.commonsense import make_items
from tests.tiny_chat import TEMPLATE, save_tiny_chat_model

SAID = "It is answer2, not answer1."
ITEMS = [item for item in make_items(6) if item.task == "ARC-Easy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def chat(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def taught(folder: Path) -> Any:
    """The tiny model, taught to answer `SAID` to every item, and to stop."""
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = render_prompts(tokenizer, ITEMS, EvaluationSettings())
    batch = tokenizer(
        [prompt + SAID + tokenizer.eos_token for prompt in prompts],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    labels = batch["input_ids"].clone()
    labels[:, : -len(SAID) - 1] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def generated(model: Any, tokenizer: Any, **settings: Any) -> Generated:
    asked = EvaluationSettings.model_validate(settings)
    return Generated(model, tokenizer, ITEMS, render_prompts(tokenizer, ITEMS, asked), asked)


def test_an_answer_that_is_complete_ends_the_generation_and_not_the_parsing(
    taught: Any, chat: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat[1]
    asked = generated(taught, tokenizer, batch_size=4)
    stopped = [reply for batch in asked.batches for reply in asked.answer(batch)]
    monkeypatch.setattr(
        "afa_lora.evaluation.commonsense.protocols.generate_batch",
        lambda *args, done, **options: generate_batch(*args, **options),
    )
    whole = [reply for batch in asked.batches for reply in asked.answer(batch)]
    assert [reply.given for reply in stopped] == [reply.given for reply in whole] == ["answer2"] * len(ITEMS)
    assert {reply.record["text"] for reply in whole} == {SAID}
    assert {reply.record["text"] for reply in stopped} == {"It is answer2"}


def test_what_is_generated_is_the_most_likely(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    own = model.generation_config  # the model's, for conversations
    own.repetition_penalty, own.do_sample, own.no_repeat_ngram_size, own.min_new_tokens = 5.0, True, 1, 5
    asked = generated(model, tokenizer, batch_size=4, max_new_tokens=5)
    with evaluating(model):
        found = {
            i: reply.record["text"]
            for batch in asked.batches
            for i, reply in zip(batch, asked.answer(batch), strict=True)
        }
    assert model.generation_config is own
    for i, prompt in enumerate(render_prompts(tokenizer, ITEMS, EvaluationSettings())):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert found[i] == tokenizer.decode(ids[0, -5:], skip_special_tokens=True).strip()
    assert len(set(found.values())) > 1


def test_beams_are_those_of_transformers(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    asked = generated(model, tokenizer, batch_size=1, beams=3, max_new_tokens=5)
    ids = tokenizer(render_prompts(tokenizer, ITEMS, EvaluationSettings())[1], return_tensors="pt")
    right, greedy = (
        model.generate(**ids, num_beams=beams, do_sample=False, max_new_tokens=5)[0, ids["input_ids"].shape[1] :]
        for beams in (3, 1)
    )
    assert asked.answer([1])[0].record["text"] == tokenizer.decode(right, skip_special_tokens=True).strip()
    assert right.tolist() != greedy.tolist()


@pytest.mark.parametrize("protocol", ["paper", "likelihood"])
def test_a_tokenizer_without_padding_and_template(chat: tuple[Any, Any], tmp_path: Path, protocol: str) -> None:
    model, tokenizer = chat
    settings = EvaluationSettings(protocol=protocol, max_new_tokens=4, batch_size=4)  # type: ignore[arg-type]
    whole = evaluate_commonsense(model, tokenizer, ITEMS, settings, tmp_path / "whole", Console(quiet=True))
    tokenizer.pad_token = tokenizer.chat_template = None
    bare = evaluate_commonsense(model, tokenizer, ITEMS, settings, tmp_path / "bare", Console(quiet=True))
    assert tokenizer.chat_template is None
    for a, b in zip(read_lines(whole.folder / "items.jsonl"), read_lines(bare.folder / "items.jsonl"), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    chatting = settings.model_copy(update={"prompt": "chat"})
    with pytest.raises(EvaluationError, match=r"no chat template.*--prompt alpaca"):
        evaluate_commonsense(model, tokenizer, ITEMS, chatting, tmp_path / "chat", Console(quiet=True))
    assert not (tmp_path / "chat").exists()


def test_prompts(chat: tuple[Any, Any]) -> None:
    tokenizer = chat[1]
    alpaca, own = (render_prompts(tokenizer, ITEMS[:1], EvaluationSettings(prompt=p))[0] for p in ("alpaca", "chat"))
    question = ITEMS[0].instruction
    assert alpaca.startswith("Below is an instruction that describes a task.")
    assert alpaca.endswith(f"### Instruction:\n{question}\n\n### Response:\n")
    assert own == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.chat_template == TEMPLATE


def test_the_likeliest_answer_counts(taught: Any, chat: tuple[Any, Any]) -> None:
    tokenizer = chat[1]
    asked = Scored(
        taught, tokenizer, ITEMS, render_prompts(tokenizer, ITEMS, EvaluationSettings()), EvaluationSettings()
    )
    for batch in asked.batches:
        for i, reply in zip(batch, asked.answer(batch), strict=True):
            scores = reply.record["log_probs"]
            assert tuple(scores) == ITEMS[i].choices
            assert scores[reply.given] == max(scores.values()) < 0


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("likelihood", r"ARC-Easy, item \d: the model's log-probabilities are not numbers"),
        ("paper", r"The model's logits are not numbers \(NaN\)"),
    ],
)
def test_a_model_without_numbers_is_refused(
    chat: tuple[Any, Any], tmp_path: Path, protocol: Literal["paper", "likelihood"], message: str
) -> None:
    model, tokenizer = chat
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(AfaLoraError, match=message):
        evaluate_commonsense(
            model, tokenizer, ITEMS, EvaluationSettings(protocol=protocol), tmp_path / "nan", Console(quiet=True)
        )
    assert not (tmp_path / "nan" / "results.json").exists()


def test_what_is_not_parsed_is_wrong_and_counted(
    taught: Any, chat: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = make_items(6)  # to boolq the model says answer2 as well, or nothing that makes sense
    taught.train()
    found = evaluate_commonsense(taught, chat[1], items, EvaluationSettings(), tmp_path, Console(quiet=True))
    assert taught.training
    taught.eval()
    truths, choices = found.results["tasks"]["boolq"], found.results["tasks"]["ARC-Easy"]
    assert (truths["unparsed"], truths["correct"]) == (6, 0)
    assert (choices["unparsed"], choices["correct"]) == (0, 2)
    assert found.results["unparsed"] == 6
    assert found.results["average"]["accuracy"] == pytest.approx(1 / 6)
    for line in read_lines(tmp_path / "items.jsonl"):
        assert line["given"] == find_answer(line["text"], ("true",) if line["task"] == "boolq" else ("answer1",))
    print_evaluation(read_evaluation(tmp_path), Console(width=100))
    printed = capsys.readouterr().out
    assert "BoolQ" in printed
    assert "100.0 %" in printed
    assert "16.7 %" in printed


@pytest.mark.parametrize(
    ("lengths", "items", "tokens", "batches"),
    [
        ([3, 9, 5, 7], 2, None, [[1, 3], [2, 0]]),
        ([3, 9, 5, 7], None, 14, [[1], [3, 2], [0]]),
        ([3, 9, 5, 7], None, 4, [[1], [3], [2], [0]]),
        ([], 3, None, []),
    ],
)
def test_longest_first(lengths: Sequence[int], items: int | None, tokens: int | None, batches: list[list[int]]) -> None:
    assert longest_first(lengths, items, tokens) == batches


def test_beams_do_not_go_with_likelihood() -> None:
    with pytest.raises(ValidationError, match="likelihood generates nothing"):
        EvaluationSettings(protocol="likelihood", beams=4)
