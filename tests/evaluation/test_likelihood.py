"""The likelihood of answers against the plain way: one sequence at a time, no cache, every logit."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from afa_lora import AfaLoraConfig
from afa_lora.evaluation.commonsense.likelihood import Likelihood, Question, to_question
from afa_lora.peft.model import anneal_states
from tests.conftest import VOCAB_SIZE

WINDOW = 6  # shorter than every question: what is outside of it must not be seen
GEMMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "initializer_range": 0.3,
}


def gemma2() -> PreTrainedModel:
    """A sliding window, and logits with a soft cap."""
    return Gemma2ForCausalLM(Gemma2Config(**GEMMA, final_logit_softcapping=2.0))


def gemma3() -> PreTrainedModel:
    """A sliding window with a rotation of its own."""
    return Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA))


def gpt_neo() -> PreTrainedModel:
    """Local attention that its cache does not tell of."""
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            window_size=WINDOW,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128,
            initializer_range=0.3,
        )
    )


def bloom() -> PreTrainedModel:
    """Positions as a bias of the attention (ALiBi)."""
    return BloomForCausalLM(
        BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    )


def mamba() -> PreTrainedModel:
    """No attention at all."""
    return MambaForCausalLM(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=4))


OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gpt_neo": gpt_neo,
    "bloom": bloom,
    "mamba": mamba,
}
PLAIN_CACHE = ("tiny_llama", "tiny_qwen2", "tiny_gpt2", "gpt_neo", "bloom")


@pytest.fixture(params=["tiny_llama", "tiny_qwen2", "tiny_gpt2", *OTHERS])
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param in OTHERS:
        return OTHERS[request.param]().eval()
    model: PreTrainedModel = request.getfixturevalue(request.param)
    return model


def some_questions(count: int, longest_rest: int, begin: int = 9) -> list[Question]:
    """Questions that begin alike, of different lengths, and with different numbers of answers."""
    generator = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, VOCAB_SIZE) for _ in range(length))

    beginning, questions = tokens(begin), []
    for _ in range(count):
        prompt = beginning + tokens(generator.randrange(2, 20))
        rests = tuple(tokens(generator.randint(1, longest_rest)) for _ in range(generator.randint(2, 5)))
        questions.append(Question(prompt + tokens(generator.randrange(4)), len(prompt), rests))
    return questions


@torch.no_grad()
def plainly(model: nn.Module, question: Question) -> list[float]:
    """The log-probabilities of all answers: one sequence at a time, no cache, every logit."""
    sums = []
    for rest in question.rests:
        whole = torch.tensor([question.shared + rest])
        log_probs = model(whole).logits[0].double().log_softmax(-1)
        positions = range(question.start, whole.shape[1])
        sums.append(sum(float(log_probs[p - 1, whole[0, p]]) for p in positions))
    return sums


def assert_same(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=2e-4)
        assert ours.index(max(ours)) == plain.index(max(plain))


@pytest.mark.parametrize("longest_rest", [1, 4])
def test_any_model_scores_as_the_plain_way(any_model: PreTrainedModel, longest_rest: int) -> None:
    questions = some_questions(12, longest_rest)
    plain = [plainly(any_model, question) for question in questions]
    likelihood = Likelihood(any_model, questions)
    assert_same(likelihood.score(questions[:7]), plain[:7])
    assert_same(likelihood.score(questions[7:]), plain[7:])  # the cache of the beginning is as it was
    assert_same(likelihood.score(questions[3:4]), plain[3:4])
    assert len({row.index(max(row)) for row in plain}) > 1


def test_questions_that_do_not_begin_alike(tiny_llama: PreTrainedModel) -> None:
    questions = some_questions(6, 3, begin=0)
    assert len({question.shared[0] for question in questions}) > 1
    assert_same(Likelihood(tiny_llama, questions).score(questions), [plainly(tiny_llama, q) for q in questions])


def test_an_adapter_that_is_still_annealing(tiny_llama: PreTrainedModel) -> None:
    config = AfaLoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_llama, config).eval()
    for state in anneal_states(model).values():
        state.beta = 0.5
    questions = some_questions(5, 2)
    plain = [plainly(model, question) for question in questions]
    assert_same(Likelihood(model, questions).score(questions), plain)
    with model.disable_adapter():
        assert plain[0] != pytest.approx(plainly(model, questions[0]), abs=0.1)


class Counted:
    """How many tokens a model has read, and for how many it has computed logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.read = self.logits = 0
        model.get_input_embeddings().register_forward_hook(self._on_read)
        model.get_output_embeddings().register_forward_hook(self._on_logits)

    def _on_read(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.read += output.shape[:2].numel()

    def _on_logits(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.logits += output.shape[:2].numel()


def test_what_is_shared_is_computed_once(any_model: PreTrainedModel, request: pytest.FixtureRequest) -> None:
    begin, own, common, answers, rows = 9, 7, 3, 4, 5
    beginning = tuple(range(10, 10 + begin))
    questions = [
        Question(
            (*beginning, 30 + i, *range(40, 39 + own)), begin + own - common, tuple((60 + j,) for j in range(answers))
        )
        for i in range(rows)
    ]
    counted = Counted(any_model)
    Likelihood(any_model, questions).score(questions)
    caches = request.node.callspec.params["any_model"] in PLAIN_CACHE
    assert counted.read == begin + rows * (own if caches else begin + own)
    assert counted.logits == 1 + rows * (common + 1)


def bytes_tokenizer(*merges: str) -> PreTrainedTokenizerFast:
    """A letter is a token, but for pairs of letters that are one."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate([*letters, "Ġ", *merges])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(pair[0], pair[1]) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("merges", "prompt", "answers", "start", "rests"),
    [
        ((), "Q:", ("is1", "is2"), 2, (1, 1)),
        ((), "Q:", ("true", "false"), 2, (4, 5)),
        ((), "Q:", ("answer1", "answer10"), 2, (1, 2)),  # one answer begins another
        ((":i",), "Q:", ("is1", "is2"), 1, (1, 1)),  # the prompt's last letter is in a token with the answer's first
        ((":t",), "Q:", ("true", "false"), 1, (4, 6)),  # only with one of them
        (("s1",), "Q:", ("is1", "is2"), 2, (1, 2)),
    ],
)
def test_prompt_and_answer_are_tokenized_together(
    merges: tuple[str, ...], prompt: str, answers: tuple[str, ...], start: int, rests: tuple[int, ...]
) -> None:
    tokenizer = bytes_tokenizer(*merges)
    question = to_question(tokenizer, prompt, answers)
    for answer, rest in zip(answers, question.rests, strict=True):
        assert list(question.shared + rest) == tokenizer(prompt + answer)["input_ids"]
    assert question.start == start
    assert tuple(map(len, question.rests)) == rests
