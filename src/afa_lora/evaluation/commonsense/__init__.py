"""The eight commonsense tasks put to a model: generated answers or their likelihood, resumable after every batch."""

from afa_lora.evaluation.commonsense.folder import Evaluation, EvaluationError, read_evaluation
from afa_lora.evaluation.commonsense.results import Comparison, compare, print_comparison, print_evaluation
from afa_lora.evaluation.commonsense.run import EvaluationStopped, evaluate_commonsense
from afa_lora.evaluation.commonsense.settings import EvaluationSettings

__all__ = [
    "Comparison",
    "Evaluation",
    "EvaluationError",
    "EvaluationSettings",
    "EvaluationStopped",
    "compare",
    "evaluate_commonsense",
    "print_comparison",
    "print_evaluation",
    "read_evaluation",
]
