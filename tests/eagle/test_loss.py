"""The loss: against its formula, its gradient, its memory, and what a position reads and predicts."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from afa_lora.eagle.alignment import IGNORED, collate, counts, draft_inputs
from afa_lora.eagle.loss import DraftLosses, draft_losses
from afa_lora.eagle.target import TargetEnds, features_of
from benchmarks.measure import peak_bytes, saved_bytes

CPU = torch.device("cpu")
POSITIONS, HIDDEN, VOCABULARY = 11, 6, 23


def by_formula(predicted: Tensor, true: Tensor, head: Tensor) -> DraftLosses:
    difference = (predicted - true).abs()
    feature = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean(-1)
    p, q = (torch.exp(x) / torch.exp(x).sum(-1, keepdim=True) for x in (true @ head.T, predicted @ head.T))
    agrees = (p.argmax(-1) == q.argmax(-1)).to(p.dtype)
    return DraftLosses(feature, -(p * q.log()).sum(-1), agrees)


def inputs(positions: int = POSITIONS) -> tuple[Tensor, Tensor, Tensor]:
    predicted, true = 2 * torch.randn(2, positions, HIDDEN, dtype=torch.float64)
    return predicted.requires_grad_(), true, torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 4, POSITIONS, 100])
def test_equals_its_formula_in_any_chunks(chunk: int) -> None:
    predicted, true, head = inputs()
    weights = torch.rand(2, POSITIONS, dtype=torch.float64)  # of each position's losses, so that none hides another
    results = [by_formula(predicted, true, head), draft_losses(predicted, true, head, chunk)]
    for part in range(3):
        assert torch.allclose(results[0][part], results[1][part], atol=1e-12, rtol=0)
    assert 0 < results[0].agrees.sum() < POSITIONS
    gradients = [
        torch.autograd.grad((weights[0] * r.feature + weights[1] * r.token).sum(), predicted)[0] for r in results
    ]
    assert torch.allclose(*gradients, atol=1e-12, rtol=0)


def test_gradient() -> None:
    predicted, true, head = inputs()
    assert torch.autograd.gradcheck(lambda x: draft_losses(x, true, head, 4)[:2], predicted)


def test_no_position_gives_no_loss_and_no_gradient() -> None:
    predicted, true, head = inputs(0)
    losses = draft_losses(predicted, true, head, 4)
    (losses.feature.sum() + losses.token.sum()).backward()
    assert predicted.grad is not None
    assert predicted.grad.shape == (0, HIDDEN)


def test_memory_of_the_output_layer_does_not_grow_with_the_sequence() -> None:
    vocabulary, hidden, chunk = 8192, 8, 16
    head = torch.randn(vocabulary, hidden)
    chunk_bytes = 4 * chunk * vocabulary

    def peak_and_saved(positions: int) -> tuple[int, int]:
        predicted, true = torch.randn(2, positions, hidden).unbind()
        predicted.requires_grad_()

        def forward() -> Tensor:
            losses = draft_losses(predicted, true, head, chunk)
            return losses.feature.sum() + losses.token.sum()

        return peak_bytes(lambda: forward().backward(), CPU), saved_bytes(forward, [predicted, true, head])

    (peak, saved), (longer_peak, longer_saved) = peak_and_saved(2 * chunk), peak_and_saved(16 * chunk)
    assert peak > chunk_bytes  # the measurement sees a chunk's logits
    assert longer_peak - peak < 0.1 * chunk_bytes
    assert max(saved, longer_saved) < 0.2 * chunk_bytes


def test_a_position_counts_where_what_it_reads_and_predicts_is_the_assistants() -> None:
    #                         t_0    t_1   t_2   t_3   t_4    t_5   t_6
    assistant = torch.tensor([False, True, True, True, False, True, True])
    assert counts(assistant).tolist() == [True, True, False, False, True]
    for n in range(3):
        assert counts(torch.ones(n, dtype=torch.bool)).tolist() == []


def test_collate_aligns_cuts_and_pads(target: PreTrainedModel, ends: TargetEnds) -> None:
    tokens = torch.randint(3, 96, (9,))
    features = features_of(target, tokens[None])[0]
    assistant = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    short = {"tokens": tokens[:4], "assistant": torch.ones(4, dtype=torch.bool), "features": features[:4]}
    batch = collate([{"tokens": tokens, "assistant": assistant, "features": features}, short])
    t = tokens.tolist()
    assert batch["labels"].tolist() == [[IGNORED, t[3], t[4]], [t[2], t[3], IGNORED]]
    assert batch["lengths"].tolist() == [9, 4]

    embeddings, given = draft_inputs(batch, ends, None, torch.float32)
    assert torch.equal(embeddings[0], ends.embed(tokens[1:4]))
    assert torch.equal(given[0], features[:4])
    again = draft_inputs({key: value for key, value in batch.items() if key != "features"}, ends, target, torch.float32)
    assert torch.equal(again[0], embeddings)
    torch.testing.assert_close(again[1][0], given[0])
    torch.testing.assert_close(again[1][1, :3], given[1, :3])
    torch.testing.assert_close(ends.logits(given[0]), target(tokens[None]).logits[0, :4])  # f_i is of token i + 1


def test_a_conversation_without_a_position_that_counts_is_carried_along() -> None:
    item = {"tokens": torch.arange(3, 9), "assistant": torch.zeros(6, dtype=torch.bool), "features": torch.ones(6, 2)}
    batch = collate([item])
    assert batch["labels"].tolist() == [[IGNORED]]
    assert batch["tokens"].shape == (1, 3)
    assert batch["features"].shape == (1, 2, 2)
