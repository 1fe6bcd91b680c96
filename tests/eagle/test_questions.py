"""The question sets: what is read, what is chosen, what is refused."""

import json
from pathlib import Path

import pytest

from afa_lora.eagle.evaluation.questions import SETS, QuestionError, load_questions


def write_set(folder: Path, name: str, lines: list[str]) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "question.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def lines(count: int) -> list[str]:
    return [
        json.dumps({"question_id": i, "category": "any", "turns": [f"What is {i}?", "And why?"]}) for i in range(count)
    ]


def test_a_set_is_read_in_its_order(tmp_path: Path) -> None:
    questions = load_questions(write_set(tmp_path, "mt_bench", lines(3)), ["mt-bench"])
    assert [(q.set, q.id, q.turns[0]) for q in questions] == [("mt-bench", str(i), f"What is {i}?") for i in range(3)]


def test_a_limit_takes_evenly_spaced_questions_of_each_set(tmp_path: Path) -> None:
    write_set(tmp_path, "mt_bench", lines(8))
    write_set(tmp_path, "mine", lines(3))
    chosen = load_questions(tmp_path, ["mt-bench", "mine"], limit=4)
    assert [(q.set, q.id) for q in chosen] == [
        *(("mt-bench", number) for number in "0246"),
        *(("mine", number) for number in "012"),
    ]


def test_fingerprints_tell_texts_apart(tmp_path: Path) -> None:
    one, two = load_questions(write_set(tmp_path, "mine", lines(2)), ["mine"])
    assert one.fingerprint != two.fingerprint
    assert load_questions(tmp_path, ["mine"])[0].fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 lacks question_id and turns"),
        ('{"turns": ["a"]}', "line 2 lacks question_id"),
        ('{"question_id": 7}', "line 2 lacks turns"),
        ('{"question_id": 7, "turns": "a"}', "turns must be a list of texts"),
        ('{"question_id": 7, "turns": ["a", " "]}', "none of them empty"),
        ('{"question_id": [7], "turns": ["a"]}', "whole number or a text"),
        ('{"question_id": 0, "turns": ["a"]}', "question_id=0 is there twice"),
        (json.dumps({"question_id": "a" * 300, "turns": ["a"]}), "line 2: question_id=aaa.*too long"),
        (json.dumps({"question_id": "a", "turns": ["\udc80"]}), "line 2 is no text"),
        (json.dumps({"question_id": "\udc80", "turns": ["a"]}), "line 2 is no text"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, broken: str, message: str) -> None:
    write_set(tmp_path, "mine", [*lines(1), broken])
    with pytest.raises(QuestionError, match=message):
        load_questions(tmp_path, ["mine"])


def test_what_is_not_there_is_said_with_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"nowhere.*no folder.*SafeAILab/EAGLE"):
        load_questions(tmp_path / "nowhere")
    write_set(tmp_path, "gsm8k", lines(1))
    with pytest.raises(QuestionError, match=r"gsm8'.*Did you mean 'gsm8k'\?.*SafeAILab/EAGLE"):
        load_questions(tmp_path, ["gsm8"])
    write_set(tmp_path, "empty", [""])
    with pytest.raises(QuestionError, match="holds no questions"):
        load_questions(tmp_path, ["empty"])
    with pytest.raises(QuestionError, match="each once"):
        load_questions(tmp_path, ["gsm8k", "gsm8k"])


def test_the_real_sets(real_data: Path) -> None:
    questions = load_questions(real_data / "eagle", limit=10)
    assert [q.set for q in questions] == [name for name in SETS for _ in range(10)]
    assert [q.id for q in questions[:3]] == ["81", "89", "97"]
    assert {len(q.turns) for q in questions[:10]} == {2}
    assert len(load_questions(real_data / "eagle")) == 320


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../mine", "\0"])
def test_a_set_is_the_name_of_a_folder(tmp_path: Path, name: str) -> None:
    write_set(tmp_path, "mine", lines(1))
    write_set(tmp_path / "inner", "other", lines(1))
    (tmp_path / "question.jsonl").write_text(lines(1)[0])
    with pytest.raises(QuestionError, match="is no name of a folder"):
        load_questions(tmp_path / "inner", [name])
