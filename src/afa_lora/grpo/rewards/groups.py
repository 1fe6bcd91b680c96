"""Groups without a signal: where all completions of a prompt earn the same, none is better than the others."""

from __future__ import annotations

from collections.abc import Sequence

from afa_lora.core.errors import InvalidSettingError


def equal_groups(rewards: Sequence[float], num_generations: int) -> int:
    """Count the groups whose rewards are all equal: their advantages are 0, and nothing is learnt from them.

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
    return sum(min(group) == max(group) for group in groups)
