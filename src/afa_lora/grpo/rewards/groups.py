"""Groups without a signal: where all completions of a prompt earn the same, none is better than the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from afa_lora.core.errors import InvalidSettingError


def equal_groups(rewards: Sequence[float], num_generations: int) -> int:
    """Count the groups whose rewards are all equal: their advantages are 0, and nothing is learnt from them.

    NaN marks a completion that no function judges; a group with fewer than two others counts as equal.

    Args:
        rewards: the sum for each completion, one group after the other.
        num_generations: the completions of a group.

    Raises:
        InvalidSettingError: the rewards do not come to whole groups.
    """
    if num_generations < 1 or len(rewards) % num_generations:
        raise InvalidSettingError(
            f"num_generations={num_generations} does not divide the {len(rewards)} completions into groups."
        )
    groups = (rewards[i : i + num_generations] for i in range(0, len(rewards), num_generations))
    judged = [[reward for reward in group if not math.isnan(reward)] for group in groups]
    return sum(len(group) < 2 or min(group) == max(group) for group in judged)
