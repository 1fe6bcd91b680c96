"""Local files: the three forms, and one clear message for whatever is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError, FileData, Sample, fingerprint, load_data, to_dataset
from afa_lora.data.files import read_samples

ASK = {"role": "user", "content": "2 + 2?"}
SAY = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(folder: Path, content: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else "\n".join(json.dumps(item) for item in content))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "completion": "4"},
        {"prompt": [ASK], "completion": [SAY]},
        {"prompt": [ASK], "completion": "4"},
        {"messages": [ASK, SAY]},
        {"instruction": "2 + 2?", "input": "", "output": "4", "answer": "unused"},
        {"instruction": "2 + 2?", "output": "4", "input": None},
    ],
)
def test_every_form_becomes_the_same_sample(tmp_path: Path, record: dict[str, Any]) -> None:
    (sample,) = read_samples(write(tmp_path, [record]))
    assert (sample.prompt, sample.completion) == ((ASK,), "4")
    assert sample.entry == record


def test_input_stands_below_the_instruction(tmp_path: Path) -> None:
    (sample,) = read_samples(write(tmp_path, [{"instruction": "Add.", "input": "2 and 2", "output": "4"}]))
    assert sample.prompt[0]["content"] == "Add.\n\n2 and 2"


def test_every_assistant_turn_is_learnt_with_what_came_before(tmp_path: Path) -> None:
    again = {"role": "user", "content": "Sure?"}
    yes = {"role": "assistant", "content": "Yes."}
    first, second = read_samples(write(tmp_path, [{"messages": [ASK, SAY, again, yes]}]))
    assert (first.prompt, first.completion) == ((ASK,), "4")
    assert (second.prompt, second.completion) == ((ASK, SAY, again), "Yes.")


def test_system_message_is_put_first_unless_there_is_one(tmp_path: Path) -> None:
    records = [{"prompt": "2 + 2?", "completion": "4"}, {"messages": [SYSTEM, ASK, SAY]}]
    plain, own = read_samples(write(tmp_path, records), system="")
    assert plain.prompt == ({"role": "system", "content": ""}, ASK)
    assert own.prompt == (SYSTEM, ASK)


def test_json_arrays_and_lines_hold_the_same(tmp_path: Path) -> None:
    records = [{"prompt": f"[{i}, {{", "completion": "]\n"} for i in range(5)]
    array = write(tmp_path, "\ufeff" + json.dumps(records, indent=2), "data.json")
    assert read_samples(array) == read_samples(write(tmp_path, records))


@pytest.mark.parametrize(
    ("content", "line", "fault"),
    [
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a" "completion": "b"}', 3, "not valid JSON: Expecting ','"),
        ('[\n{"prompt": "a",\n "completion": "b"},\n{"prompt" "a"}\n]', 4, "not valid JSON: Expecting ':'"),
        ('[\n{"prompt": "a",\n "completion": "b"},\n\n{"prompt": "a"}\n]', 5, "the record has the columns 'prompt'"),
        ('{"prompt": "a", "completion": "b"}\n{"text": "a"}', 2, "needs prompt/completion or messages or instruction"),
        ('{"prompt": "a", "completion": "b"}\n7', 2, "expected a JSON object, found 7"),
        ('{"prompt": "a", "completion": 7}', 1, "'completion' must be a text"),
        ('{"prompt": " ", "completion": "b"}', 1, "'prompt' is empty"),
        ('{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}', 1, "one assistant message"),
        ('{"messages": [{"role": "user", "content": "a"}]}', 1, "no assistant message"),
        ('{"messages": [{"from": "human", "value": "a"}]}', 1, "messages with 'role' and 'content'"),
        ('{"messages": "a"}', 1, "non-empty list of messages"),
        ('{"instruction": "a", "input": 3, "output": "b"}', 1, "'input' must be a text, not int"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_fault(tmp_path: Path, content: str, line: int, fault: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_samples(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert fault in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}')
    with pytest.raises(DataError, match="line 2: this is not UTF-8"):
        read_samples(path)


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_records(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="holds no records"):
        read_samples(write(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such file"):
        read_samples(tmp_path / "nowhere.jsonl")


def numbered(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"item {i}", "completion": "x"} for i in range(count)]


def questions(samples: list[Sample]) -> list[str]:
    return [sample.prompt[-1]["content"] for sample in samples]


def test_test_items_are_held_out_when_there_is_no_test_file(tmp_path: Path) -> None:
    source = FileData(source="file", train=write(tmp_path, numbered(20)), test_items=5)
    items = load_data(source)
    assert len(items.test) == 5
    assert sorted(questions(items.train + items.test)) == sorted(r["prompt"] for r in numbered(20))
    assert load_data(source) == items
    assert questions(load_data(source.model_copy(update={"seed": 1})).test) != questions(items.test)


def test_a_tested_prompt_is_never_trained_on(tmp_path: Path) -> None:
    test = write(tmp_path, numbered(20)[5:8], "test.jsonl")
    source = FileData(source="file", train=write(tmp_path, numbered(20)), test=test, test_items=2, train_items=10)
    items = load_data(source)
    assert questions(items.test) == ["item 5", "item 6"]
    assert questions(items.train) == [f"item {i}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]


@pytest.mark.parametrize(("key", "message"), [("train_items", "only 20 to train on"), ("test_items", "only 20 items")])
def test_more_items_than_there_are(tmp_path: Path, key: str, message: str) -> None:
    settings = {"test_items": 0, key: 30}
    if key == "test_items":
        settings["test"] = write(tmp_path, numbered(20), "test.jsonl")
    with pytest.raises(DataError, match=message):
        load_data(FileData(source="file", train=write(tmp_path, numbered(20)), **settings))


def test_dataset_has_the_form_that_trl_takes_the_completion_loss_on(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path, [{"prompt": "2 + 2?", "completion": "4"}]))
    assert to_dataset(samples).to_list() == [{"prompt": [ASK], "completion": [SAY]}]


def test_fingerprint_tells_content_and_order() -> None:
    a, b = Sample((ASK,), "4"), Sample((ASK,), "5")
    assert fingerprint([a, b]) == fingerprint([a, b])
    assert len({fingerprint(samples) for samples in ([a], [b], [a, b], [b, a], [])}) == 5


@pytest.mark.parametrize("name", ["ARC-Easy", "ARC-Challenge", "boolq", "openbookqa"])
def test_real_files_read_whole(real_data: Path, name: str) -> None:
    source = FileData(
        source="file",
        train=real_data / "commonsense" / name / "train.json",
        test=real_data / "commonsense" / name / "test.json",
    )
    items = load_data(source)
    assert len(items.train) > 1000
    assert all(sample.completion.startswith("the correct answer is ") for sample in items.train)
