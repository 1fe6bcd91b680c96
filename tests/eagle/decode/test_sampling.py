"""Sampled output has the target's own distribution: by enumeration of every random outcome, and end to end."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from afa_lora.eagle.decode import Chain, DynamicTree, Shape, SpeculativeDecoding, StaticTree, chance
from afa_lora.eagle.decode.sampling import acceptance
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds
from tests.eagle.decode.drafts import small_target

PROMPT = torch.tensor([[1, 0, 2, 1]])
SAMPLED = {"do_sample": True, "top_k": 0, "eos_token_id": None, "attention_mask": torch.ones_like(PROMPT)}
SMALL_TREE = StaticTree(((0,), (1,), (0, 0)))


def random_distribution(size: int, zeros: int, generator: torch.Generator) -> Tensor:
    """(size,) in float64, with some zeros."""
    weights = torch.rand(size, dtype=torch.float64, generator=generator) ** 3
    weights[torch.randperm(size, generator=generator)[:zeros]] = 0
    return weights / weights.sum()


@pytest.mark.parametrize("children", [1, 2, 3, 5])
@pytest.mark.parametrize("zeros", [(0, 0), (2, 0), (0, 2), (2, 3)])
def test_the_next_token_is_distributed_as_the_targets(children: int, zeros: tuple[int, int]) -> None:
    """All draws of the proposals, all acceptances and refusals, and the draw after the last refusal."""
    generator = torch.Generator().manual_seed(children)
    for _ in range(5):
        target = random_distribution(5, zeros[0], generator)
        draft = random_distribution(5, zeros[1], generator)
        found = torch.zeros(5, dtype=torch.float64)
        for proposals in itertools.permutations(range(5), children):
            weight, left = 1.0, 1.0
            for token in proposals:  # without replacement; what has no probability comes last, in one order
                share = float(draft[token])
                positive = share > 0 or left > 1e-12
                weight *= share / left if share > 0 else (0.0 if positive else 1.0 / (5 - proposals.index(token)))
                left -= share
            if weight == 0:
                continue
            rates, rest = acceptance(target, draft, proposals)
            for token, rate in zip(proposals, rates.tolist(), strict=True):
                found[token] += weight * rate
                weight *= 1 - rate
            found += weight * rest
        assert torch.allclose(found, target, atol=1e-12, rtol=0)


def test_a_draft_equal_to_the_target_is_always_accepted() -> None:
    same = random_distribution(6, 1, torch.Generator().manual_seed(0))
    token = int(same.argmax())
    rates, rest = acceptance(same, same, [token])
    assert rates.tolist() == [1.0]
    assert torch.equal(rest, same)  # never drawn from, but a distribution


def test_distinct_draws_have_the_probabilities_of_draws_without_replacement() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 0.3, 0.2, 0.0])
    drawn = chance.draw_distinct(weights.expand(20000, 4), 2)
    counts = Counter(map(tuple, drawn.tolist()))
    expected = {
        (a, b): float(weights[a] * weights[b] / (1 - weights[a])) for a, b in itertools.permutations(range(3), 2)
    }
    assert set(counts) == set(expected)
    observed = [counts[pair] for pair in expected]
    rates = [20000 * rate for rate in expected.values()]
    assert stats.chisquare(observed, rates, sum_check=False).pvalue > 1e-4
    last = chance.draw_distinct(weights[None], 4)
    assert last[0, -1] == 3


def test_draws_follow_the_seed() -> None:
    weights = torch.full((4, 1000), 1e-3)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append((chance.draw_distinct(weights, 5).tolist(), chance.draw(weights[0]), chance.draw(weights[0])))
    assert drawn[0] == drawn[1]
    assert all(first != other for first, other in zip(drawn[0], drawn[2], strict=True))
    assert drawn[0][1] != drawn[0][2]


def test_a_broken_distribution_is_not_drawn_from() -> None:
    with pytest.raises(RuntimeError, match="NaN"):
        chance.draw(torch.tensor([0.5, float("nan"), 0.5]))


class Outcomes:
    """Takes the place of chance: runs through every random outcome, with its probability."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.options: list[list[float]] = []

    def choose(self, weights: list[float]) -> int:
        """An index of positive weight: the script's, or the first one where the script ends."""
        place = len(self.options)
        self.options.append(weights)
        if place == len(self.script):
            self.script.append(self._next(weights, -1))
        return self.script[place]

    @staticmethod
    def _next(weights: list[float], last: int) -> int:
        return next((index for index in range(last + 1, len(weights)) if weights[index] > 0), -1)

    def accepts(self, probability: float) -> bool:
        return self.choose([probability, 1 - probability]) == 0

    def draw(self, probabilities: Tensor) -> int:
        return self.choose((probabilities.double() / probabilities.double().sum()).tolist())

    def draw_distinct(self, probabilities: Tensor, count: int) -> Tensor:
        rows = []
        for row in probabilities.double():
            left: dict[int, float] = dict(enumerate(row.tolist()))
            drawn: list[int] = []
            for _ in range(count):
                whole = sum(left.values())
                weights = [left.get(token, 0.0) / whole if whole else 0.0 for token in range(len(row))]
                drawn.append(self.choose(weights) if whole else min(left))  # of probability 0, any one
                del left[drawn[-1]]
            rows.append(drawn)
        return torch.tensor(rows)

    def probability(self) -> float:
        """Of the outcome that was just run."""
        product = 1.0
        for weights, index in zip(self.options, self.script, strict=True):
            product *= weights[index]
        return product

    def advance(self) -> bool:
        """Go on to the next outcome, if there is one."""
        while self.script:
            following = self._next(self.options[len(self.script) - 1], self.script[-1])
            if following >= 0:
                self.script[-1] = following
                self.options = []
                return True
            self.script.pop()
        return False


class First(LogitsProcessor):
    """Makes the first token certain, so that all outcomes belong to cycles."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > PROMPT.shape[1]:
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, 0] = 0
        return only


def unlike_draft(target: PreTrainedModel) -> EagleDraft:
    """A draft that is sure of other things than the target."""
    torch.manual_seed(5)
    draft = TargetEnds.of(target, "small").new_draft(torch.float64).eval()
    draft.fc.weight.data *= 4
    return draft


def generate(target: PreTrainedModel, decoding: SpeculativeDecoding | None, new: int, **options: Any) -> list[int]:
    """Sample so many new tokens, the first of which is certain; return the others."""
    given = {**SAMPLED, **options}
    first = LogitsProcessorList([First()])
    text = target.generate(PROMPT, max_new_tokens=new, logits_processor=first, custom_generate=decoding, **given)
    return list(text[0, PROMPT.shape[1] + 1 :].tolist())


def distribution(target: PreTrainedModel, new: int, **options: Any) -> dict[tuple[int, ...], float]:
    """Of what `generate` returns: the product of the target's processed probabilities, one token after the other."""
    vocabulary, found = target.config.vocab_size, {}
    processors = _processors(target, new, **options)
    for tokens in itertools.product(range(vocabulary), repeat=new - 1):
        text, probability = torch.cat((PROMPT, torch.zeros(1, 1, dtype=torch.long)), 1), 1.0
        for token in tokens:
            with torch.no_grad():
                scores = processors(text, target(text).logits[:, -1].float())
            probability *= float(scores[0].double().softmax(-1)[token])
            text = torch.cat((text, torch.tensor([[token]])), 1)
        found[tokens] = probability
    return found


def _processors(target: PreTrainedModel, new: int, **options: Any) -> LogitsProcessorList:
    """Those that `generate` makes of the options."""
    caught: list[LogitsProcessorList] = []

    def catch(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **given: Any) -> Tensor:
        caught.append(logits_processor)
        return input_ids

    given = {**SAMPLED, **options}
    target.generate(PROMPT, max_new_tokens=new, custom_generate=catch, **given)
    return caught[0]


@pytest.mark.parametrize(
    ("shape", "new", "options"),
    [
        (Chain(2), 4, {}),
        (Chain(1), 3, {"temperature": 0.8, "repetition_penalty": 1.3}),
        (SMALL_TREE, 4, {}),
        (SMALL_TREE, 3, {"top_p": 0.9, "repetition_penalty": 1.3}),
        (DynamicTree(3, 2, 2), 4, {"temperature": 1.5}),
    ],
    ids=str,
)
def test_the_decoder_over_every_random_outcome(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, new: int, options: dict[str, Any]
) -> None:
    target = small_target(3)
    decoding = SpeculativeDecoding(unlike_draft(target), shape)
    expected = distribution(target, new, **options)
    outcomes = Outcomes()
    for name in ("accepts", "draw", "draw_distinct"):
        monkeypatch.setattr(chance, name, getattr(outcomes, name))
    found: Counter[tuple[int, ...]] = Counter()
    accepted: Counter[int] = Counter()
    running = True
    while running:
        tokens = generate(target, decoding, new, **options)
        found[tuple(tokens)] += outcomes.probability()
        accepted[decoding.last.accepted[0]] += outcomes.probability()
        running = outcomes.advance()
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    for tokens, probability in expected.items():
        assert found[tokens] == pytest.approx(probability, abs=1e-6)  # chances are in float32
    assert min(accepted[0], accepted[1]) > 0.05, "one of the two sides was not tried"


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [Chain(3), StaticTree(((0,), (1,), (2,), (0, 0), (0, 1), (1, 0))), DynamicTree(5, 2, 3)]
)
def test_samples_end_to_end(shape: Shape) -> None:
    target = small_target(5)
    options = {"temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.5}
    expected = {tokens: rate for tokens, rate in distribution(target, 3, **options).items() if rate > 0}
    decoding = SpeculativeDecoding(unlike_draft(target), shape)
    torch.manual_seed(0)
    counts = Counter(tuple(generate(target, decoding, 3, **options)) for _ in range(1000))
    assert set(counts) <= set(expected)
    frequent = [tokens for tokens, rate in expected.items() if rate * 1000 >= 5]
    observed = [*(counts[tokens] for tokens in frequent), 1000 - sum(counts[tokens] for tokens in frequent)]
    rates = [expected[tokens] for tokens in frequent]
    rates.append(1 - sum(rates))
    kept = [place for place, rate in enumerate(rates) if rate > 1e-9]
    assert len(kept) > 8
    test = stats.chisquare(
        [observed[place] for place in kept], [1000 * rates[place] for place in kept], sum_check=False
    )
    assert test.pvalue > 1e-4


def test_plain_sampling_differs_from_the_draft() -> None:
    """The chi-square test can fail: the draft's own samples are far from the target's."""
    target = small_target(5)
    ends, draft = TargetEnds.of(target, "small"), unlike_draft(target)
    with torch.no_grad():
        features = target.base_model(PROMPT).last_hidden_state
        text = torch.cat((PROMPT, torch.zeros(1, 1, dtype=torch.long)), 1)
        proposed = ends.logits(draft(ends.embed(text[:, 1:]), features)[0, -1]).softmax(-1)
        wanted = target(text).logits[0, -1].softmax(-1)
    assert float((proposed - wanted).abs().sum()) > 0.5
