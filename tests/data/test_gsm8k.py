"""GSM8K: from a folder or the hub, the question as verl asks it, the number as the answer."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from afa_lora.data import DataError, Gsm8kData, Items
from afa_lora.data.gsm8k import final_number, load_gsm8k
from tests.data.reading import questions, write

VERL = 'Let\'s think step by step and output the final answer after "####".'


def record(number: int) -> dict[str, str]:
    return {"question": f"How much is {number} + {number}?", "answer": f"It is <<{number}*2>>.\n#### {2 * number}"}


def records(*numbers: int) -> list[dict[str, str]]:
    return [record(number) for number in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten items to train on, three to test on; one is in both."""
    write(tmp_path, records(*range(10)), "train.jsonl")
    write(tmp_path, records(9, 10, 11), "test.jsonl")
    return tmp_path


def load(folder: Path | None, report: list[str] | None = None, **settings: Any) -> Items:
    source = Gsm8kData(source="gsm8k", folder=folder, **settings)
    return load_gsm8k(source, [].append if report is None else report.append)


def test_a_sample(folder: Path) -> None:
    (sample, *_) = load(folder).test
    assert sample.prompt == ({"role": "user", "content": f"How much is 9 + 9? {VERL}"},)
    assert sample.completion == "18"
    assert sample.entry == record(9)
    (other, *_) = load(folder, system="Be brief.", instruction="").test
    assert other.prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How much is 9 + 9?"},
    )


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("#### 18", "18"),
        ("a\n#### 1,234,567", "1234567"),
        ("#### -3", "-3"),
        ("#### 0.5", "0.5"),
        ("#### 1\n#### 2", "1"),  # of a right answer verl takes the first, of a completion the last
        ("18", None),
        ("####18", None),
        ("#### $18", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(answer: str, number: str | None) -> None:
    assert final_number(answer) == number


def test_what_is_tested_is_not_trained(folder: Path) -> None:
    lines: list[str] = []
    items = load(folder, lines, train_items=5, test_items=2)
    assert questions(items.test) == [f"How much is {i} + {i}? {VERL}" for i in (9, 10)]
    assert len(set(questions(items.train))) == 5
    assert not set(questions(items.train)) & set(questions(items.test))
    assert re.fullmatch(
        r"5 items to train on, 2 to test on, shuffled with seed 0, fingerprint [0-9a-f]{16}; left out: 1 training item "
        r"whose question is also tested on, 4 training items beyond data.train_items=5, 1 test item beyond the first "
        r"2\.",
        lines[-1],
    )


def test_the_seed_decides_the_order_of_the_training_items_alone(folder: Path) -> None:
    one, again, two = (load(folder, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.test == two.test
    assert one.train != two.train
    assert sorted(questions(one.train)) == sorted(questions(two.train))


def test_tested_on_none(folder: Path) -> None:
    (folder / "test.jsonl").unlink()
    items = load(folder, test_items=0)
    assert (len(items.train), items.test) == (10, [])


def test_another_kind_of_file(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    write_table(pyarrow.Table.from_pylist(records(1, 2)), folder / "train.parquet")
    assert sorted(sample.completion for sample in load(folder).train) == ["2", "4"]


@pytest.mark.parametrize(
    ("train", "settings", "parts"),
    [
        ([record(0), {"question": "Why?", "answer": "Because."}], {}, ["train.jsonl, record 2 has no answer", "Why?"]),
        ([record(0), {"question": "Why?", "answer": ""}], {}, ["train.jsonl, line 2", "empty", "'#### number'"]),
        ([{"question": "Why?"}], {}, ["train.jsonl, line 1", "no column 'answer'", "'#### number'"]),
        ([{"prompt": "Why?", "answer": "#### 1"}], {}, ["line 1", "no column 'question'"]),
        ("{", {}, ["train.jsonl, line 1", "not valid JSON"]),
        (None, {"train_items": 10}, ["data.train_items=10, but there are only 9"]),
        (None, {"test_items": 4}, ["data.test_items=4, but the test set has only 3 items"]),
    ],
)
def test_what_is_wrong(folder: Path, train: Any, settings: dict[str, Any], parts: list[str]) -> None:
    if train is not None:
        write(folder, train, "train.jsonl")
    with pytest.raises(DataError) as caught:
        load(folder, **settings)
    for part in parts:
        assert part in str(caught.value)


def test_a_folder_without_a_test_set(folder: Path) -> None:
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no test set of GSM8K\. Looked for test\.jsonl.* openai/gsm8k"):
        load(folder)


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local data set with the hub's id and layout goes through the very same call."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    main = tmp_path / "openai" / "gsm8k" / "main"
    main.mkdir(parents=True)
    for split, rows in (("train", records(*range(10))), ("test", records(9, 10, 11))):
        write_table(pyarrow.Table.from_pylist(rows), main / f"{split}-00000-of-00001.parquet")
    files = [{"split": split, "path": f"main/{split}-*"} for split in ("train", "test")]
    configs = f"- config_name: main\n  data_files: {json.dumps(files)}\n- config_name: socratic\n"
    (main.parent / "README.md").write_text(f"---\nconfigs:\n{configs}  data_files: socratic/*\n---\n")
    local = tmp_path / "local"
    write(local, records(*range(10)), "train.jsonl")
    write(local, records(9, 10, 11), "test.jsonl")
    assert load(None) == load(local)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "another cache")
    write_table(pyarrow.Table.from_pylist([{"question": "Why?", "answer": "?"}]), main / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"openai/gsm8k \(main\), split 'test', record 1 has no answer"):
        load(None)


def test_the_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"the hub cannot be reached.*data\.folder"):
        load(None)


@pytest.mark.integration
def test_the_real_data(real_data: Path) -> None:
    """Every published record has its number, and no question is in both sets."""
    lines: list[str] = []
    items = load(real_data / "gsm8k", lines, test_items=1319)
    assert (len(items.train), len(items.test)) == (7473, 1319)
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", sample.completion) for sample in items.train + items.test)
    assert all(sample.entry["answer"].replace(",", "").endswith(sample.completion) for sample in items.train)
