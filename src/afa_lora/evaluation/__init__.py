"""How well a model answers: generated answers, scored."""

from afa_lora.evaluation.accuracy import Accuracy, Answer, evaluate
from afa_lora.evaluation.generate import generate_answers
from afa_lora.evaluation.scoring import Score, exact_match, score_for

__all__ = ["Accuracy", "Answer", "Score", "evaluate", "exact_match", "generate_answers", "score_for"]
