"""The eight tasks as a recipe's data: shuffled, cut, and never both trained and tested on."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from afa_lora.data import CommonsenseData, DataError, DataSource, Items, fingerprint, load_data
from tests.data import test_commonsense_hub
from tests.data.commonsense_items import row, rows, write_folder, write_json

hub = test_commonsense_hub.hub  # the eight data sets, as local ones


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, train={"boolq": 30, "piqa": 20}, test={"boolq": 6, "piqa": 4})


def load(said: list[str] | None = None, **settings: Any) -> Items:
    source = TypeAdapter(DataSource).validate_python({"source": "commonsense", **settings})
    assert isinstance(source, CommonsenseData)
    return load_data(source, [].append if said is None else said.append)


def test_samples(folder: Path) -> None:
    write_json(folder / "piqa" / "train.json", [row("piqa", 5)])
    expected = row("piqa", 5)
    items = load(folder=folder, tasks=["piqa"])
    assert items.test == []
    (sample,) = items.train
    assert sample.prompt == ({"role": "user", "content": expected["instruction"]},)
    assert sample.completion == expected["output"]
    assert sample.entry == {"task": "piqa", "index": 0, "answer": "solution1", "choices": ("solution1", "solution2")}
    (spoken,) = load(folder=folder, tasks=["piqa"], system="Be brief.").train
    assert spoken.prompt == ({"role": "system", "content": "Be brief."}, *sample.prompt)


def test_the_seed_decides_the_order(folder: Path) -> None:
    said: list[str] = []
    items = load(said, folder=folder)
    assert load(folder=folder) == items
    other = load(folder=folder, seed=1)
    assert other != items
    assert {str(sample) for sample in other.train} == {str(sample) for sample in items.train}
    assert len({sample.entry["task"] for sample in items.train[:20]}) == 2
    assert said[-1] == (
        f"50 items to train on, 0 to test on, shuffled with seed 0, fingerprint {fingerprint(items.train)}."
    )


def test_cut_to_a_number(folder: Path) -> None:
    said: list[str] = []
    items = load(said, folder=folder, tasks=["boolq", "piqa"], train_items=7, test_items=3)
    assert items.train == load(folder=folder).train[:7]
    assert [sample.entry["task"] for sample in items.test] == ["boolq"] * 3 + ["piqa"] * 3
    assert said[-1].startswith("7 items to train on, 6 to test on, shuffled with seed 0, fingerprint ")
    assert said[-1].endswith("; left out: 43 training items beyond data.train_items=7.")
    with pytest.raises(DataError, match=r"data\.train_items=51, but there are only 50 to train on"):
        load(folder=folder, train_items=51)


def test_a_file_of_all(folder: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "commonsense_170k.json", [*rows("boolq", 9), *rows("ARC-Easy", 5)])
    items = load(file=path, folder=folder)
    assert sorted(sample.entry["task"] for sample in items.train) == ["boolq"] * 3 + ["unknown"] * 5


def test_a_file_without_a_folder_is_compared_with_the_hub(hub: Path) -> None:
    path = write_json(hub / "mix.json", rows("boolq", 9))
    said: list[str] = []
    assert len(load(said, file=path).train) == 6
    assert said[1] == (
        "6 train items (boolq 6), compared with 8 test sets; left out: 3 boolq items found in a test set."
    )


def test_a_file_does_not_go_with_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="tasks is for a folder or the hub: the items of a file do not say"):
        load(file=tmp_path / "mix.json", tasks=["boolq"])


def test_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load(folder=f"~/{folder.name}").train) == 50
