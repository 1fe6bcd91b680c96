"""The questions that drafts are measured on: MT-Bench, GSM8K, HumanEval, Alpaca, as SafeAILab's EAGLE has them.

A set is a file of JSON lines, ``FOLDER/SET/question.jsonl``: ``question_id``, ``turns`` (what the user says, one text a
turn), and what else there may be. Any set of that form can be measured on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from afa_lora.core.errors import AfaLoraError, closest
from afa_lora.files import write_atomic

SETS = ("mt-bench", "gsm8k", "humaneval", "alpaca")
"""The sets of the paper's table 3."""
FILE = "question.jsonl"
LONGEST_ID = 200  # as the name of a file, percent-encoded
PUBLISHED = (
    "The four sets are published in the repository SafeAILab/EAGLE on GitHub, as eagle/data/SET/question.jsonl; a set "
    'of your own has lines such as {"question_id": 1, "turns": ["What is 2 + 2?"]}.'
)


class QuestionError(AfaLoraError, ValueError):
    """Questions cannot be found or read."""


@dataclass(frozen=True)
class Question:
    """One question, of one turn or several.

    Attributes:
        set: the name of its set.
        id: tells it from the others of its set.
        turns: what the user says; the model answers after each.
    """

    set: str
    id: str
    turns: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Tells its texts from others."""
        return hashlib.sha256(json.dumps(self.turns).encode()).hexdigest()[:16]


def load_questions(folder: Path, sets: Sequence[str] = SETS, limit: int | None = None) -> list[Question]:
    """Read sets of questions.

    Args:
        folder: holds a folder for each set; ``mt-bench`` may be called ``mt_bench`` there.
        sets: their names.
        limit: at most so many of each set, evenly spaced: MT-Bench is sorted by category.

    Raises:
        QuestionError: there is no such folder or set, or a line is no question.
    """
    if not folder.is_dir():
        raise QuestionError(f"data={str(folder)!r} is no folder. {PUBLISHED}")
    if not sets or len(set(sets)) < len(sets):
        raise QuestionError(f"sets={','.join(sets)!r}: name at least one set, and each once.")
    chosen = []
    for name in sets:
        questions = _read(_file(folder, name), name)
        count = min(limit or len(questions), len(questions))
        chosen += [questions[i * len(questions) // count] for i in range(count)]
    return chosen


def _file(folder: Path, name: str) -> Path:
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise QuestionError(f"sets={name!r} is no name of a folder in {folder}. Give such names, without a path.")
    for spelt in (name, name.replace("-", "_")):
        if (path := folder / spelt / FILE).is_file():
            return path
    there = sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))
    listed = f" There are {', '.join(there)}." if there else ""
    raise QuestionError(f"sets={name!r}: there is no {folder / name / FILE}.{closest(name, there)}{listed} {PUBLISHED}")


def _read(path: Path, name: str) -> list[Question]:
    questions: dict[str, Question] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        question = _question(line, f"{path}, line {number}", name)
        if question.id in questions:
            raise QuestionError(f"{path}, line {number}: question_id={question.id} is there twice. Give it another.")
        questions[question.id] = question
    if not questions:
        raise QuestionError(f"{path} holds no questions. {PUBLISHED}")
    return list(questions.values())


def _question(line: bytes, where: str, name: str) -> Question:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise QuestionError(f"{where} is no JSON: {error}. Mend or remove that line.") from error
    keys = ("question_id", "turns")
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise QuestionError(f"{where} lacks {' and '.join(missing)}. {PUBLISHED}")
    turns, number = record["turns"], record["question_id"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise QuestionError(f"{where}: turns must be a list of texts, at least one, none of them empty.")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise QuestionError(f"{where}: question_id={number!r} must be a whole number or a text.")
    try:
        "".join(turns).encode()
        encoded = quote(str(number), safe="")
    except UnicodeEncodeError as error:
        raise QuestionError(f"{where} is no text: {error}. Mend or remove that line.") from error
    if len(encoded) > LONGEST_ID:
        raise QuestionError(f"{where}: question_id={encoded[:20]}… is too long for a file's name. Give a shorter one.")
    return Question(name, str(number), tuple(turns))


def write_questions(folder: Path, name: str, questions: Iterable[tuple[str, str]]) -> None:
    """Write a set of questions of one turn.

    Args:
        folder: of the sets.
        name: of the set.
        questions: ids and texts.
    """
    lines = [json.dumps({"question_id": number, "turns": [text]}, ensure_ascii=False) for number, text in questions]
    write_atomic(folder / name / FILE, "".join(f"{line}\n" for line in lines))
