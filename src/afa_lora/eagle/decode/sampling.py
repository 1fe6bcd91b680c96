"""How a sampled token is chosen below a node so that it has the target's distribution, whatever the draft proposes.

One proposal: Leviathan et al. (arXiv 2211.17192, Algorithm 1). Several, drawn without replacement: recursive rejection
sampling, as in EAGLE-1 and SpecInfer (arXiv 2305.09781, section 4.3). A proposal x, drawn from q, is accepted with
probability min(1, p(x) / q(x)); after a refusal the target's distribution is that of max(0, p − q), scaled to sum 1,
the draft's is q without x, scaled to sum 1, and the next proposal is judged by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from afa_lora.eagle.decode import chance
from afa_lora.eagle.decode.tree import DraftTree


def acceptance(target: Tensor, draft: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The chances of proposals that were drawn without replacement, one after the other.

    Args:
        target: (vocabulary,), p.
        draft: (vocabulary,), q.
        tokens: the proposals, in the order of their draw. What q gives no probability is never accepted.

    Returns:
        (proposals,), each the probability that it is accepted if those before it were refused; and (vocabulary,), the
        distribution of the token if all are refused.
    """
    smallest = torch.finfo(draft.dtype).tiny
    rates = []
    for token in tokens:
        rates.append((target[token] / draft[token].clamp(min=smallest)).clamp(max=1) * (draft[token] > 0))
        rest = (target - draft).clamp(min=0)
        total = rest.sum()
        target = torch.where(total > 0, rest / total, target)  # p = q: there is no refusal
        draft = draft.clone()
        draft[token] = 0
        draft = draft / draft.sum().clamp(min=smallest)
    return torch.stack(rates), target


def sample(scores: Tensor, tree: DraftTree, node: int) -> int:
    """Choose the token after a node.

    Where the proposals are no random draws (a dynamic tree), the token is drawn from the target's distribution alone.

    Args:
        scores: (vocabulary,), the target's logits after the node, processed.
        tree: what was proposed.
        node: the node; -1 is the root.
    """
    target = torch.softmax(scores, dim=-1)
    draft = tree.distribution(node)
    if draft is None:
        return chance.draw(target)
    proposals = list(tree.children[node])
    rates, rest = acceptance(target, draft, proposals)
    for token, rate in zip(proposals, rates.tolist(), strict=True):
        if chance.accepts(rate):
            return token
    return chance.draw(rest)
