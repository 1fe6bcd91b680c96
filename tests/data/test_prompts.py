"""Prompts for reinforcement learning: long ones dropped and counted, records carried to the scorers as they are."""

from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from afa_lora.data import DataError, Sample, TaskData, load_data
from afa_lora.data.prompts import BATCH, drop_long, pack_entry, prompt_lengths, to_prompt_dataset, unpack_entry
from tests.data.reading import SYSTEM
from tests.tiny_chat import save_tiny_chat_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """One token a byte, three special ones."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_tiny_chat_model(tmp_path_factory.mktemp("m")))
    return found


def sample(text: str, *before: dict[str, str]) -> Sample:
    return Sample((*before, {"role": "user", "content": text}), "7", {"n": 1})


def test_lengths_are_those_of_what_the_model_gets(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = [sample("2 + 5?"), sample("é" * 3, SYSTEM)]
    whole = ["<|im_start|>user\n2 + 5?<|im_end|>\n<|im_start|>assistant\n"]
    whole.append(f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n{whole[0].replace('2 + 5?', 'é' * 3)}")
    assert prompt_lengths(samples, tokenizer) == [len(tokenizer(text)["input_ids"]) for text in whole]


def test_long_prompts_are_dropped_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = [sample("a" * length) for length in (5, 40, 6, 7)]
    (longest_kept,) = prompt_lengths([samples[2]], tokenizer)
    kept, dropped = drop_long(samples, tokenizer, longest_kept)
    assert (kept, dropped) == ([samples[0], samples[2]], 2)
    assert drop_long(samples, tokenizer, 10**6) == (samples, 0)
    assert drop_long([], tokenizer, 1) == ([], 0)


def test_more_than_one_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = [sample("a" * (1 + i % 3)) for i in range(BATCH + 5)]
    lengths = prompt_lengths(samples, tokenizer)
    assert [length - lengths[0] for length in lengths] == [i % 3 for i in range(BATCH + 5)]


def test_all_too_long(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = [sample("a" * 9), sample("a" * 5)]
    longest, shortest = prompt_lengths(samples, tokenizer)
    said = f"max_prompt_length=4: the shortest has {shortest} tokens, the longest {longest}"
    with pytest.raises(DataError, match=f"None of the 2 prompts fits into {said}"):
        drop_long(samples, tokenizer, 4)


def test_a_template_that_refuses_a_prompt(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    monkeypatch.setattr(tokenizer, "chat_template", refusing)
    with pytest.raises(DataError, match=r"refuses the prompt 'b': no system role\. .*roles system, user"):
        drop_long([sample("a"), sample("b", SYSTEM)], tokenizer, 100)


def test_columns_as_trl_reads_them(tmp_path: Path) -> None:
    samples = [sample("2 + 5?"), sample("3 + 4?", SYSTEM)]
    to_prompt_dataset(samples).save_to_disk(tmp_path)
    dataset = load_from_disk(tmp_path)
    assert dataset.column_names == ["prompt", "answer", "entry"]
    assert dataset[1]["prompt"] == [SYSTEM, {"role": "user", "content": "3 + 4?"}]
    assert dataset["answer"][:] == ["7", "7"]
    assert [unpack_entry(text) for text in dataset["entry"]] == [{"n": 1}, {"n": 1}]
    assert len(to_prompt_dataset([])) == 0


@pytest.mark.parametrize("task", ["chain_sum", "arc_agi"])
def test_records_of_a_task_come_back_as_they_were(task: str) -> None:
    """A puzzle's grids are tuples, and its scorer wants them so."""
    items = load_data(TaskData(source="reasoning-gym", task=task, train_items=2, test_items=1), [].append)
    for item in items.train:
        assert unpack_entry(pack_entry(item.entry)) == item.entry


@pytest.mark.parametrize(
    "entry",
    [{}, {"a": None, "b": [1, 2.5, "ü", True]}, {"a": (1, [(2,), ()])}, {"a": {"b": {"c": ({"d": (1,)},)}}}],
)
def test_packing(entry: dict[str, Any]) -> None:
    assert repr(unpack_entry(pack_entry(entry))) == repr(entry)


@pytest.mark.parametrize(
    ("entry", "said"), [({"a": 1, "b": {1}}, "'a', 'b' is no JSON: .*set"), ({"a": {1: 2}}, "the key 1 is no text")]
)
def test_what_cannot_be_packed(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        pack_entry(entry)
