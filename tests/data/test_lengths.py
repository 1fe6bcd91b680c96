"""The length report against the real trainer: the same rows, each of the same length."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from afa_lora.data import DataError, Sample, measure_lengths, to_dataset
from afa_lora.data.lengths import BATCH, item_lengths, row_lengths
from tests.tiny_chat import save_tiny_chat_model

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDED = MARKED + "{% if not add_generation_prompt %}{{ messages[0]['content'] }}{% endif %}"
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Start with the user.') }}{% endif %}"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("model"), layers=1)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_folder)
    return loaded


@pytest.fixture
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder)
    return loaded


def sample(prompt: int, completion: int) -> Sample:
    """A sample of so many characters, each of which is a token of the tiny model; the template adds its own."""
    return Sample(({"role": "user", "content": "q" * prompt},), "a" * completion)


SAMPLES = [
    *[sample(10 + 7 * i % 50, 5 + 3 * i % 20) for i in range(28)],
    sample(85, 40),  # the prompt fits in 128 with what is around it, the completion does not
    sample(200, 10),  # the prompt alone is longer
    sample(2, 300),
    Sample((*sample(30, 0).prompt, {"role": "assistant", "content": "b" * 30}, {"role": "user", "content": "c"}), "d"),
]


def arguments(folder: Path, **settings: Any) -> SFTConfig:
    return SFTConfig(str(folder), bf16=False, use_cpu=True, report_to="none", **settings)


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated")
@pytest.mark.parametrize(
    ("settings", "template"),
    [
        ({"max_length": 128}, None),
        ({"max_length": 60}, None),
        ({"max_length": None}, None),
        ({"max_length": 128, "truncation_mode": "keep_end"}, None),
        ({"max_length": 128, "completion_only_loss": False}, None),
        ({"max_length": 60, "assistant_only_loss": True}, MARKED),
        ({"max_length": 60, "assistant_only_loss": True, "completion_only_loss": False}, MARKED),
        ({"max_length": 60, "assistant_only_loss": True, "truncation_mode": "keep_end"}, ENDED),
        ({"max_length": 128, "packing": True}, None),
        ({"max_length": 60, "packing": True}, None),
        ({"max_length": 60, "packing": True, "packing_strategy": "bfd_split"}, None),
        ({"max_length": 60, "packing": True, "packing_strategy": "wrapped", "shuffle_dataset": True}, None),
    ],
)
def test_the_trainer_sees_the_same_rows(
    tmp_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    template: str | None,
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    args = arguments(tmp_path, **settings)
    report = measure_lengths(SAMPLES, tokenizer, args)
    trainer = SFTTrainer(model, args=args, train_dataset=to_dataset(SAMPLES), processing_class=tokenizer)
    seen = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    rows = row_lengths(item_lengths(SAMPLES, tokenizer, args), args)
    assert rows == seen or (args.shuffle_dataset and sorted(rows) == sorted(seen))
    assert (report.rows, report.row_tokens) == (len(seen), sum(seen))
    if not args.packing:
        whole = SFTTrainer(
            model,
            args=arguments(tmp_path, **{**settings, "max_length": None}),
            train_dataset=to_dataset(SAMPLES),
            processing_class=tokenizer,
        )
        lengths = [len(ids) for ids in whole.train_dataset["input_ids"]]
        assert (report.items, report.tokens) == (len(lengths), sum(lengths))
        assert (report.shortest, report.longest) == (min(lengths), max(lengths))
        assert report.dropped == len(lengths) - len(seen)
        assert report.cut == sum(length > (args.max_length or max(lengths)) for length in lengths) - report.dropped


def test_test_items_are_packed_by_their_own_setting(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    args = arguments(tmp_path, max_length=128, packing=True, eval_packing=False)
    data = to_dataset(SAMPLES)
    trainer = SFTTrainer(model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    for split, dataset in (("training", trainer.train_dataset), ("test", trainer.eval_dataset)):
        assert measure_lengths(SAMPLES, tokenizer, args, split).rows == len(dataset)


def test_more_items_than_one_batch(tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    many = [sample(1 + i % 13, 1 + i % 7) for i in range(BATCH + 200)]
    args = arguments(tmp_path, max_length=100, packing=True)
    advanced: list[int] = []
    report = measure_lengths(many, tokenizer, args, advance=advanced.append)
    assert advanced == [BATCH, 200]
    trainer = SFTTrainer(model, args=args, train_dataset=to_dataset(many), processing_class=tokenizer)
    assert report.rows == len(trainer.train_dataset)


def test_the_numbers_and_what_is_said(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    around = 21  # what the tiny model's template puts around a prompt of one turn and its completion
    samples = [sample(20, size) for size in range(1, 40)] + [sample(200, 1)]
    report = measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=74))
    lengths = sorted([20 + around + size for size in range(1, 40)] + [201 + around])
    assert (report.tokens, report.shortest, report.longest) == (sum(lengths), 42, 222)
    assert (report.median, report.percentile_95) == ((lengths[19] + lengths[20]) / 2, lengths[37])
    assert json.loads(json.dumps(asdict(report)))["dropped"] == 1
    assert str(report).split("\n") == [
        f"40 training items, {sum(lengths):,} tokens: 42 to 222 an item, median 61.5, 95 % at most 79.",
        "1 of 40 training items has no completion token within max_length 74 and is dropped, 6 are cut to 74.",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": None}, ["There is no max_length: none is cut."]),
        ({"max_length": 1024}, ["None is longer than max_length 1,024."]),
        ({"max_length": 300}, ["\n1 is cut to 300."]),
        ({"max_length": 60, "packing": True}, ["and nothing is learnt from them", "rows (bfd)."]),
        ({"max_length": 60, "packing": True, "packing_strategy": "wrapped"}, ["go on in another row; none is cut."]),
    ],
)
def test_what_is_said_of_other_settings(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], said: list[str]
) -> None:
    report = measure_lengths(SAMPLES, tokenizer, arguments(tmp_path, **settings))
    for text in said:
        assert text in str(report)


@pytest.mark.parametrize("packing", [False, True])
def test_all_items_too_long(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, packing: bool) -> None:
    samples = [sample(60, 10), sample(50, 90)]
    with pytest.raises(DataError) as caught:
        measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=40, packing=packing))
    first, longest = (
        int(word) for word in str(caught.value).replace(";", " ").split() if word.isdigit() and int(word) > 2
    )
    assert "train.max_length=40 is too small: none of the 2 training items has a completion token" in str(caught.value)
    assert measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=first)).dropped == 1
    assert measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=longest)).cut == 0
    assert measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=longest - 1)).cut == 1
    with pytest.raises(DataError):
        measure_lengths(samples, tokenizer, arguments(tmp_path, max_length=first - 1))


def test_messages_that_the_chat_template_refuses(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = STRICT + str(tokenizer.chat_template)
    bad = Sample(({"role": "system", "content": "s"}, {"role": "user", "content": "the bad one"}), "a")
    with pytest.raises(DataError) as caught:
        measure_lengths([sample(3, 3), bad, sample(4, 4)], tokenizer, arguments(tmp_path))
    assert "refuses the item that asks 'the bad one': Start with the user." in str(caught.value)
    assert "roles system, user, assistant" in str(caught.value)
