"""Drafts measured on a target's own answers: accepted tokens, n-α, speed-up."""

from afa_lora.eagle.evaluation.drafts import name_drafts
from afa_lora.eagle.evaluation.questions import SETS, QuestionError
from afa_lora.eagle.evaluation.record import RecordError
from afa_lora.eagle.evaluation.results import DraftEvaluation
from afa_lora.eagle.evaluation.run import DraftEvaluationError, evaluate_drafts
from afa_lora.eagle.evaluation.settings import DraftEvaluationSettings
from afa_lora.eagle.evaluation.tables import markdown, print_drafts

__all__ = [
    "SETS",
    "DraftEvaluation",
    "DraftEvaluationError",
    "DraftEvaluationSettings",
    "QuestionError",
    "RecordError",
    "evaluate_drafts",
    "markdown",
    "name_drafts",
    "print_drafts",
]
