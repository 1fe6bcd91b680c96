"""What a study of EAGLE drafts has beside its average: accepted tokens for each set of questions and each shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from afa_lora.evaluation.statistics import bootstrap_interval
from afa_lora.reproduce.runs import Scores
from afa_lora.reproduce.seeds import mean_over_seeds

PROMPTS = "items"  # what an interval is over where there is one seed


def accepted_columns(scores: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """For each set and shape the accepted draft tokens a cycle, the mean over the prompts, and its interval.

    Args:
        scores: of the seeds of one arm.
    """
    if not scores:
        return {}
    columns = {}
    for name in scores[0].columns:
        prompts = [seed.columns[name] for seed in scores]  # (prompts,) each
        means = [float(seed.mean()) for seed in prompts]
        columns[name] = {**mean_over_seeds(means, bootstrap_interval(np.mean(prompts, axis=0)), PROMPTS)}
        columns[name]["per_seed"] = means
    return columns
