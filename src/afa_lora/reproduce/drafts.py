"""What a draft has had accepted, as it lies beside its run for the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from afa_lora.files import write_atomic
from afa_lora.reproduce.runs import RESULTS

if TYPE_CHECKING:
    from afa_lora.eagle.evaluation import DraftEvaluation
    from afa_lora.eagle.evaluation.questions import Question

UNTRAINED = "untrained"  # what the evaluation calls a draft that has learnt nothing; its folder, too


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the questions in order."""
    listed = [(question.set, question.id, question.fingerprint) for question in questions]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


def write_accepted(evaluation: DraftEvaluation, draft: str, questions: Sequence[Question], folder: Path) -> None:
    """Write what one draft of an evaluation has had accepted.

    Args:
        evaluation: has the draft among others.
        draft: its name there.
        questions: that were asked.
        folder: of the arm's evaluation.
    """
    asked = evaluation.settings
    cycles = {
        name: {
            shape: {number: asdict(counts) for number, counts in evaluation.cycles[draft, shape, name].items()}
            for shape in asked["shapes"]
        }
        for name in asked["questions"]
    }
    settings = {key: asked[key] for key in ("target", "shapes", "max_new_tokens", "dtype", "questions")}
    settings["data"] = questions_fingerprint(questions)
    content = {"settings": settings, "cycles": cycles, "environment": evaluation.results["environment"]}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
