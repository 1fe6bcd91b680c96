"""Hub data sets; a local folder in the hub's layout goes through the very same call."""

import json
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError, HubData, load_data


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "sums"
    path.mkdir()
    for split, count in (("train", 12), ("test", 4)):
        rows = [{"question": f"{split} {i} + {i}", "answer": str(2 * i)} for i in range(count)]
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


COLUMNS = {"prompt": "question", "completion": "answer"}


def load(folder: Path, **changes: Any) -> Any:
    return load_data(HubData(source="hub", name=str(folder), **{"columns": COLUMNS, "test_items": 4, **changes}))


def test_splits_and_columns(folder: Path) -> None:
    items = load(folder, test="test")
    assert len(items.train) == 12
    assert items.test[3].prompt[0]["content"] == "test 3 + 3"
    assert items.test[3].completion == "6"


def test_held_out_of_the_training_split(folder: Path) -> None:
    items = load(folder)
    assert (len(items.train), len(items.test)) == (8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"prompt": "query"}}, r"data.columns names \['query'\]"),
        ({"columns": {}}, "item 0: the record has the columns 'question', 'answer'"),
        ({"train": "validation"}, "split 'validation', cannot be loaded"),
        ({"name": "nobody/nothing"}, "'nobody/nothing', split 'train', cannot be loaded"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"source": "hub", "name": str(folder), "columns": COLUMNS, "test_items": 4, **changes}
    with pytest.raises(DataError, match=message):
        load_data(HubData(**settings))
