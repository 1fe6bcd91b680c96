"""A draft against the record: what it would have had accepted, without running the target.

Greedy decoding gives the target's own tokens whatever is proposed, so the record says of every proposal how much of it
the target accepts; and the features that the draft reads are the recorded ones. The cycles are those of
`afa_lora.eagle.decode`: the prefill gives the first token, and is no cycle.
"""

from __future__ import annotations

from afa_lora.eagle.decode import Drafter, accepted_path, room_left
from afa_lora.eagle.evaluation.measures import PromptCounts
from afa_lora.eagle.evaluation.record import Turn


def replay(drafter: Drafter, turn: Turn, max_new_tokens: int) -> PromptCounts:
    """The cycles of one answer.

    Args:
        drafter: of a draft, on the device of the turn.
        turn: what was recorded.
        max_new_tokens: that it was recorded with: near the limit, shorter paths are proposed.

    Returns:
        the counts; a cycle that the answer's end cuts counts the draft tokens that are kept.
    """
    tokens, features = turn.tokens, turn.features
    limit, positions = turn.prompt + max_new_tokens, drafter.ends.config.max_position_embeddings
    read, root, last = 0, turn.prompt, len(tokens) - 1
    accepted: list[int] = []
    drafter.reset()
    while root < last:
        drafter.extend(features[read:root], tokens[read + 1 : root + 1])
        following = tokens[root + 1 :]
        tree = drafter.propose(room_left(root + 1, limit, root, positions), following)
        accepted.append(len(accepted_path(tree, following)))
        read, root = root, root + accepted[-1] + 1  # the bonus token is the next root
    return PromptCounts(tuple(accepted), last - turn.prompt)
