"""Answers are those of greedy decoding one by one, and scores mean what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from afa_lora.data import FileData, Sample
from afa_lora.evaluation import Accuracy, Answer, evaluate, exact_match, generate_answers, score_for
from tests.tiny_chat import save_tiny_chat_model


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = save_tiny_chat_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


PROMPTS = [({"role": "user", "content": "a" * length},) for length in (3, 40, 1, 17, 25, 8, 2)]


def one_by_one(model: Any, tokenizer: Any, prompt: Any, count: int) -> str:
    """Greedy decoding in plain words: the most likely next token, again and again."""
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    answer: list[int] = []
    while len(answer) < count:
        token = int(model(torch.cat([ids, torch.tensor([answer], dtype=torch.long)], dim=1)).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        answer.append(token)
    return str(tokenizer.decode(answer, skip_special_tokens=True).strip())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_of_any_size_answer_as_one_by_one_and_in_order(chat: tuple[Any, Any], batch_size: int) -> None:
    model, tokenizer = chat
    model.train()
    counts: list[int] = []
    answers = generate_answers(
        model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size, advance=counts.append
    )
    assert sum(counts) == len(PROMPTS)
    assert model.training
    model.eval()
    assert answers == [one_by_one(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert len(set(answers)) > 1


def test_padding_side_of_the_tokenizer_is_left_alone(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    tokenizer.padding_side = "right"
    generate_answers(model, tokenizer, PROMPTS, max_new_tokens=1)
    assert tokenizer.padding_side == "right"


def test_no_prompts_no_answers(chat: tuple[Any, Any]) -> None:
    assert generate_answers(*chat, [], max_new_tokens=1) == []


@pytest.mark.parametrize(
    ("given", "right", "score"),
    [
        ("The correct answer is answer2", "the correct answer is answer2", 1.0),
        ("the  correct\nanswer is answer2.", "the correct answer is answer2", 1.0),
        ("\uff11\uff12", "12", 1.0),
        ("the correct answer is answer3", "the correct answer is answer2", 0.0),
        ("12.5", "125", 0.0),
        ("", "0", 0.0),
    ],
)
def test_exact_match(given: str, right: str, score: float) -> None:
    assert exact_match(given, Sample((), right)) == score


def test_scorer_of_files_is_the_exact_match() -> None:
    assert score_for(FileData(source="file", train=Path("x"))) is exact_match


def test_evaluate_pairs_answers_with_their_samples(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    model.eval()
    rights = [one_by_one(model, tokenizer, prompt, 4) for prompt in PROMPTS]
    samples = [Sample(p, right if i else right + "!") for i, (p, right) in enumerate(zip(PROMPTS, rights, strict=True))]
    accuracy = evaluate(model, tokenizer, samples, exact_match, max_new_tokens=4, batch_size=4)
    assert (accuracy.correct, accuracy.items) == (len(PROMPTS) - 1, len(PROMPTS))
    assert accuracy.answers[0] == Answer("aaa", rights[0] + "!", rights[0], 0.0)


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"),
    [(0, 100, 0.0, 0.0370), (50, 100, 0.4038, 0.5962), (100, 100, 0.9630, 1.0), (1, 3, 0.0615, 0.7923)],
)
def test_interval_is_wilsons(correct: int, items: int, low: float, high: float) -> None:
    answers = tuple(Answer("", "", "", 1.0 if i < correct else 0.5) for i in range(items))
    accuracy = Accuracy(answers)
    assert accuracy.share == correct / items
    assert accuracy.interval == pytest.approx((low, high), abs=1e-4)
