"""Greedy decoding with a draft gives the target's own tokens, and stops where they stop."""

import copy
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    MaxTimeCriteria,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from afa_lora.eagle.decode import Chain, Drafter, DraftTree, DynamicTree, Shape, SpeculativeDecoding, StaticTree
from afa_lora.eagle.decode.target import Verifier
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import features_of
from tests.eagle.decode.drafts import SHAPES, greedy, make_draft

PROMPT = torch.tensor([[5, 17, 3, 88, 41, 9]])
KINDS = ["random", "perfect", "adversarial"]


@pytest.fixture
def double(target: PreTrainedModel) -> PreTrainedModel:
    """The target in float64, where no two ways to compute a token disagree, and without what makes it repeat itself."""
    for layer in target.model.layers:
        if layer.self_attn.v_proj.bias is not None:
            layer.self_attn.v_proj.bias.data *= 0.1
    return target.double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("new", "length"), [(1, 6), (2, 6), (23, 6), (23, 1)])
def test_equals_plain_greedy(double: PreTrainedModel, shape: Shape, kind: str, new: int, length: int) -> None:
    prompt = PROMPT[:, :length]
    expected = greedy(double, prompt, new)
    decoding = SpeculativeDecoding(make_draft(kind, double, greedy(double, prompt, 40)), shape)
    assert torch.equal(greedy(double, prompt, new, custom_generate=decoding), expected)
    accepted = decoding.last.accepted
    assert sum(accepted) + len(accepted) + 1 == new
    if kind == "adversarial":
        assert sum(accepted) == 0
    if kind == "perfect":
        longest = 5 if isinstance(shape, StaticTree) else 4
        whole, rest = divmod(new - 1, longest + 1)
        assert accepted == [longest] * whole + [rest - 1] * bool(rest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stops_inside_a_block_at_an_end_token(double: PreTrainedModel, shape: Shape, kind: str) -> None:
    whole = greedy(double, PROMPT, 9)
    draft = make_draft(kind, double, greedy(double, PROMPT, 40))
    continuation = whole[0, PROMPT.shape[1] :].tolist()
    firsts = [place for place, token in enumerate(continuation[:-1]) if token not in continuation[:place]]
    assert firsts[-1] > 5, "no block is cut"
    for place in firsts:
        options = {"eos_token_id": [continuation[place], 95], "return_dict_in_generate": True}
        expected = greedy(double, PROMPT, 9, **options)
        decoding = SpeculativeDecoding(draft, shape)
        found = greedy(double, PROMPT, 9, custom_generate=decoding, **options)
        assert torch.equal(found.sequences, expected.sequences)
        assert found.sequences.shape[1] == PROMPT.shape[1] + place + 1
        _assert_equal_caches(found.past_key_values, expected.past_key_values)
        if kind == "perfect":
            longest = 5 if isinstance(shape, StaticTree) else 4
            whole_cycles, rest = divmod(place, longest + 1)  # the cut cycle counts the draft tokens that it kept
            assert decoding.last.accepted == [longest] * whole_cycles + [min(rest, longest)] * bool(rest)


def _assert_equal_caches(found: DynamicCache, expected: DynamicCache) -> None:
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.keys.shape == other.keys.shape
        assert torch.allclose(one.keys, other.keys, atol=1e-10)
        assert torch.allclose(one.values, other.values, atol=1e-10)


@pytest.mark.parametrize("kind", ["random", "perfect"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_caches_after_each_cycle_hold_the_text_and_true_features(
    double: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, shape: Shape, kind: str
) -> None:
    targets: list[list[Tensor]] = []
    drafts: list[list[Tensor]] = []
    keep, propose = Verifier.keep, Drafter.propose

    def entries(cache: DynamicCache) -> list[Tensor]:
        return [states.clone() for layer in cache.layers for states in (layer.keys, layer.values)]

    def keep_and_look(self: Verifier, rows: list[int]) -> None:
        keep(self, rows)
        targets.append(entries(self.cache))

    def propose_and_look(self: Drafter, room: int | None = None) -> DraftTree:
        tree = propose(self, room)
        drafts.append(entries(self.cache))
        return tree

    monkeypatch.setattr(Verifier, "keep", keep_and_look)
    monkeypatch.setattr(Drafter, "propose", propose_and_look)
    draft = make_draft(kind, double, greedy(double, PROMPT, 40))
    text = greedy(double, PROMPT, custom_generate=SpeculativeDecoding(draft, shape))

    whole = double(text[:, :-1]).past_key_values
    features = features_of(double, text)
    cache = DynamicCache()
    draft(double.get_input_embeddings()(text[:, 1:]), features[:, :-1], past_key_values=cache)
    for seen, expected in ((targets, entries(whole)), (drafts, entries(cache))):
        lengths = [states[0].shape[2] for states in seen]
        assert lengths == sorted(set(lengths))
        for cycle in seen:
            for found, states in zip(cycle, expected, strict=True):
                assert torch.allclose(found, states[:, :, : found.shape[2]], atol=1e-10)
    assert targets[-1][0].shape[2] == text.shape[1] - 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "perfect"])
def test_accepted_counts_equal_the_longest_agreeing_path(
    double: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, shape: Shape, kind: str
) -> None:
    trees: list[DraftTree] = []
    propose = Drafter.propose

    def propose_and_look(self: Drafter, room: int | None = None) -> DraftTree:
        trees.append(propose(self, room))
        return trees[-1]

    monkeypatch.setattr(Drafter, "propose", propose_and_look)
    text = greedy(double, PROMPT)[0].tolist()
    draft = make_draft(kind, double, greedy(double, PROMPT, 40))
    decoding = SpeculativeDecoding(draft, shape)
    greedy(double, PROMPT, custom_generate=decoding)
    root, expected = PROMPT.shape[1], []
    for tree in trees:
        paths: list[list[int]] = []
        for token, parent in zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
        agreeing = [len(path) for path in paths if path == text[root + 1 : root + 1 + len(path)]]
        expected.append(max(agreeing, default=0))
        root += expected[-1] + 1
    assert decoding.last.accepted == expected


class _Jump(LogitsProcessor):
    """Depends on the whole text and on being called once for each token, and works for a batch of one only."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(input_ids) == 1
        self.calls += 1
        scores[0, (int(input_ids.sum()) + self.calls) % scores.shape[1]] += 3
        return scores


PROCESSED: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.4},
    "no repeated bigram": {"no_repeat_ngram_size": 2},
    "least new tokens": {"min_new_tokens": 6, "eos_token_id": list(range(0, 96, 2))},
    "forced end": {"forced_eos_token_id": 7},
    "only even tokens": {"prefix_allowed_tokens_fn": lambda batch, text: [[4, 6, 8], []][batch]},
    "of the prompt": {"encoder_repetition_penalty": 8.0},
}


@pytest.mark.parametrize("options", PROCESSED.values(), ids=PROCESSED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_processors_of_generate(double: PreTrainedModel, shape: Shape, options: dict[str, Any]) -> None:
    expected = greedy(double, PROMPT, 14, **options)
    for kind in ("random", "perfect"):
        decoding = SpeculativeDecoding(make_draft(kind, double, expected), shape)
        assert torch.equal(greedy(double, PROMPT, 14, custom_generate=decoding, **options), expected)
    assert not torch.equal(expected, greedy(double, PROMPT, 14)), "the options change nothing"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_custom_processor_with_a_state(double: PreTrainedModel, shape: Shape) -> None:
    expected = greedy(double, PROMPT, logits_processor=LogitsProcessorList([_Jump()]))
    decoding = SpeculativeDecoding(make_draft("perfect", double, expected), shape)
    found = greedy(double, PROMPT, logits_processor=LogitsProcessorList([_Jump()]), custom_generate=decoding)
    assert torch.equal(found, expected)


def test_a_penalty_is_applied_to_the_proposals(double: PreTrainedModel) -> None:
    options = {"repetition_penalty": 3.0}
    expected = greedy(double, PROMPT, **options)
    decoding = SpeculativeDecoding(make_draft("perfect", double, expected), Chain(4))
    greedy(double, PROMPT, custom_generate=decoding, **options)
    assert decoding.last.mean_accepted > 3  # as much as without a penalty


class _Sum(StoppingCriteria):
    """Stops where the sum of the tokens says so."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([int(input_ids.sum()) % 7 == 0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "perfect"])
def test_custom_stopping_criteria(double: PreTrainedModel, shape: Shape, kind: str) -> None:
    options = {"stopping_criteria": StoppingCriteriaList([_Sum()])}
    expected = greedy(double, PROMPT, **options)
    assert PROMPT.shape[1] + 1 < expected.shape[1] < PROMPT.shape[1] + 23
    decoding = SpeculativeDecoding(make_draft(kind, double, greedy(double, PROMPT, 40)), shape)
    assert torch.equal(greedy(double, PROMPT, custom_generate=decoding, **options), expected)


def test_stop_strings_as_a_criterion(double: PreTrainedModel) -> None:
    words = {word: number for number, word in enumerate(["<pad>", "Ġ", *map(chr, range(33, 127))])}  # one byte each
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=words, merges=[])))
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    whole = greedy(double, PROMPT)
    stop = tokenizer.decode(whole[0, PROMPT.shape[1] + 5 : PROMPT.shape[1] + 8])
    draft = make_draft("perfect", double, greedy(double, PROMPT, 40))
    for shape in SHAPES:
        found = [
            greedy(
                double, PROMPT, stopping_criteria=StoppingCriteriaList([StopStringCriteria(tokenizer, [stop])]), **way
            )
            for way in ({}, {"custom_generate": SpeculativeDecoding(draft, shape)})
        ]
        assert torch.equal(*found)
        assert found[0].shape[1] < whole.shape[1]


def test_max_time_stops_at_the_next_token(double: PreTrainedModel) -> None:
    decoding = SpeculativeDecoding(make_draft("perfect", double, greedy(double, PROMPT, 40)), Chain(4))
    over = StoppingCriteriaList([MaxTimeCriteria(max_time=1.0, initial_timestamp=time.time() - 2)])
    assert greedy(double, PROMPT, custom_generate=decoding, stopping_criteria=over).shape[1] == PROMPT.shape[1] + 1
    assert decoding.last.accepted == []


def test_never_proposes_beyond_the_positions(double: PreTrainedModel) -> None:
    prompt = torch.randint(3, 96, (1, 240), generator=torch.Generator().manual_seed(0))
    longest: list[int] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        longest.append(int(kwargs["position_ids"].max()))

    text = greedy(double, prompt, 15)
    draft = make_draft("perfect", double, text)
    double.base_model.register_forward_pre_hook(look, with_kwargs=True)
    for shape in SHAPES:
        found = greedy(double, prompt, 40, custom_generate=SpeculativeDecoding(draft, shape), max_length=256)
        assert torch.equal(found[:, :255], text[:, :255])
    longest.clear()
    beyond = greedy(double, prompt, 30, custom_generate=SpeculativeDecoding(draft, Chain(4)))
    assert beyond.shape[1] == 270  # as plain generation, which only warns
    assert max(position for position in longest if position < 256) == 255
    assert longest[-10:] == list(range(259, 269))  # one at a time


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_padding_before_the_prompt(double: PreTrainedModel, shape: Shape) -> None:
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), PROMPT), 1)
    options = {"attention_mask": (torch.arange(padded.shape[1]) >= 3).long()[None]}
    expected = greedy(double, padded, **options)
    assert torch.equal(expected[:, 3:], greedy(double, PROMPT))
    decoding = SpeculativeDecoding(make_draft("perfect", double, expected[:, 3:]), shape)
    assert torch.equal(greedy(double, padded, custom_generate=decoding, **options), expected)
    assert decoding.last.mean_accepted > 3  # the draft reads the text as if it were not padded


def test_a_prompt_in_chunks(double: PreTrainedModel) -> None:
    decoding = SpeculativeDecoding(make_draft("perfect", double, greedy(double, PROMPT, 40)), Chain(4))
    found = greedy(double, PROMPT, custom_generate=decoding, prefill_chunk_size=4)
    assert torch.equal(found, greedy(double, PROMPT))
    assert decoding.last.mean_accepted > 3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eager_attention(double: PreTrainedModel, shape: Shape) -> None:
    expected = greedy(double, PROMPT)
    double.set_attn_implementation("eager")
    draft = make_draft("random", double, expected)
    draft.set_attn_implementation("eager")
    assert torch.equal(greedy(double, PROMPT, custom_generate=SpeculativeDecoding(draft, shape)), expected)


def test_scores_and_logits_are_those_of_plain_generation(double: PreTrainedModel) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.3}
    expected = greedy(double, PROMPT, **options)
    for shape in SHAPES:
        decoding = SpeculativeDecoding(make_draft("perfect", double, expected.sequences), shape)
        found = greedy(double, PROMPT, custom_generate=decoding, **options)
        assert torch.equal(found.sequences, expected.sequences)
        for one, other in ((found.scores, expected.scores), (found.logits, expected.logits)):
            assert torch.allclose(torch.stack(one), torch.stack(other), atol=1e-5)
        _assert_equal_caches(found.past_key_values, expected.past_key_values)


class _Listener:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, tokens: Tensor) -> None:
        self.heard.append(tokens.tolist())

    def end(self) -> None:
        self.heard.append("end")


def test_a_streamer_hears_the_same(double: PreTrainedModel) -> None:
    plain, drafted = _Listener(), _Listener()
    expected = greedy(double, PROMPT, streamer=plain)
    decoding = SpeculativeDecoding(make_draft("perfect", double, expected), DynamicTree())
    greedy(double, PROMPT, streamer=drafted, custom_generate=decoding)
    assert drafted.heard == plain.heard
    assert plain.heard[-1] == "end"


class _Falsy(_Listener):
    """A listener that is False while it has heard nothing."""

    def __len__(self) -> int:
        return len(self.heard)


def test_a_streamer_that_is_false_hears_too(double: PreTrainedModel) -> None:
    decoding = SpeculativeDecoding(make_draft("random", double, PROMPT), Chain(2))
    given, direct = _Falsy(), _Falsy()

    def hand_on(model: Any, input_ids: Any, **prepared: Any) -> Any:
        return decoding(model, input_ids, streamer=direct, **prepared)

    text = greedy(double, PROMPT, streamer=given, custom_generate=decoding)
    greedy(double, PROMPT, custom_generate=hand_on)
    assert direct.heard == [[token] for token in text[0, PROMPT.shape[1] :].tolist()] + ["end"]
    assert given.heard == [PROMPT.tolist(), *direct.heard]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_chooses_what_one_forward_finds_likeliest(
    target: PreTrainedModel, draft: EagleDraft, shape: Shape
) -> None:
    target = target.to(torch.bfloat16)
    text = greedy(target, PROMPT, custom_generate=SpeculativeDecoding(draft, shape))
    assert text.shape[1] == PROMPT.shape[1] + 23
    assert draft.dtype == torch.float32
    logits = target(text).logits[0, PROMPT.shape[1] - 1 : -1].float()
    chosen = logits.gather(1, text[0, PROMPT.shape[1] :, None])[:, 0]
    likeliest = logits.amax(1)
    assert (likeliest - chosen <= 2**-6 * likeliest.abs()).all()  # of a bfloat16's 8 bits, the last two
    assert (chosen == likeliest).sum() > 18


def test_the_fitted_copy_is_kept_until_the_draft_changes(target: PreTrainedModel, draft: EagleDraft) -> None:
    target, used = target.double(), []
    decoding = SpeculativeDecoding(draft, Chain(2))
    for number in range(5):
        if number == 2:
            with torch.no_grad():
                draft.fc.weight.mul_(2)
        if number == 4:
            decoding.draft = copy.deepcopy(draft)
        greedy(target, PROMPT, 3, custom_generate=decoding)
        used.append(decoding._fitted(target.lm_head.weight))
        assert torch.equal(used[-1].fc.weight, draft.fc.weight.double())
    assert [one is other for one, other in pairwise(used)] == [True, False, True, False]


def test_an_empty_cache_of_the_caller_is_filled(double: PreTrainedModel, draft: EagleDraft) -> None:
    cache = DynamicCache()
    text = greedy(double, PROMPT, past_key_values=cache, custom_generate=SpeculativeDecoding(draft, Chain(3)))
    assert torch.equal(text, greedy(double, PROMPT))
    assert cache.get_seq_length() == text.shape[1] - 1


def test_time_is_told_by_part(target: PreTrainedModel, draft: EagleDraft) -> None:
    decoding = SpeculativeDecoding(draft, Chain(3))
    begun = time.perf_counter()
    greedy(target, PROMPT, custom_generate=decoding)
    whole, last = time.perf_counter() - begun, decoding.last
    parts = [last.prefill_seconds, last.target_seconds, last.draft_seconds, last.other_seconds]
    assert min(parts) > 0
    assert sum(parts) < whole
    assert last.overhead == pytest.approx(parts[3] / sum(parts[1:]))
