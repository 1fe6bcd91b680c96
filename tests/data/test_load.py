"""What becomes of the samples: held out, cut to length, never both trained and tested on, and all of it said."""

from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError, FileData, Items, Sample, fingerprint, load_data, to_dataset
from tests.data.reading import ASK, SAY, numbered, questions, read, write


def load(said: list[str] | None = None, **settings: Any) -> Items:
    return load_data(FileData(source="file", **settings), [].append if said is None else said.append)


def test_test_items_are_held_out_when_there_is_no_test_file(tmp_path: Path) -> None:
    settings = {"train": write(tmp_path, numbered(20)), "test_items": 5}
    said: list[str] = []
    items = load(said, **settings)
    assert len(items.test) == 5
    assert sorted(questions(items.train + items.test)) == sorted(record["prompt"] for record in numbered(20))
    assert said[1] == "15 items to train on, 5 to test on, held out with seed 0."
    assert load(**settings) == items
    assert questions(load(**settings, seed=1).test) != questions(items.test)


def test_a_tested_prompt_is_never_trained_on(tmp_path: Path) -> None:
    test = write(tmp_path, numbered(20)[5:8], "test.jsonl")
    said: list[str] = []
    items = load(said, train=write(tmp_path, numbered(20)), test=test, test_items=2, train_items=10)
    assert questions(items.test) == ["item 5", "item 6"]
    assert questions(items.train) == [f"item {i}" for i in (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)]
    assert said[2] == (
        "10 items to train on, 2 to test on; left out: 2 training items whose prompt is also tested on, "
        "8 training items beyond data.train_items=10, 1 test items beyond data.test_items=2."
    )


def test_without_a_reporter_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, numbered(3))
    load_data(FileData(source="file", train=path, test_items=0))
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 3 records as prompt-completion; 3 samples.",
        "3 items to train on, 0 to test on.",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"test_items": 0, "train_items": 30},
            "data.train_items=30, but there are only 20 to train on. Set data.train_items to 20 or less, "
            "or leave it out to take all.",
        ),
        (
            {"test_items": 20},
            "data.test_items=20, but there are only 20 items, of which at least one must be left to train on. "
            "Set data.test_items to 19 or less; 0 tests on none.",
        ),
        (
            {"test_items": 4, "test": 3},
            "data.test_items=4, but there are only 3 items. Set data.test_items to 3 or less; 0 tests on none.",
        ),
        (
            {"test_items": 20, "test": 20},
            "There is nothing to train on: the prompts of all 20 training items are also tested on. "
            "Name another data.train or data.test.",
        ),
    ],
)
def test_more_items_than_there_are(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    files = {"train": write(tmp_path, numbered(20))}
    if "test" in settings:
        files["test"] = write(tmp_path, numbered(settings["test"]), "test.jsonl")
    with pytest.raises(DataError) as caught:
        load(**{**settings, **files})
    assert str(caught.value) == message


def test_dataset_has_the_form_that_trl_takes_the_completion_loss_on(tmp_path: Path) -> None:
    samples = read(write(tmp_path, [{"prompt": "2 + 2?", "completion": "4"}]))
    assert to_dataset(samples).to_list() == [{"prompt": [ASK], "completion": [SAY]}]


def test_fingerprint_tells_content_and_order() -> None:
    a, b, c = Sample((ASK,), "4"), Sample((ASK,), "5"), Sample((ASK, SAY), "4")
    assert fingerprint([a, b]) == fingerprint([Sample((ASK,), "4", {"id": 1}), b])
    assert len({fingerprint(samples) for samples in ([a], [b], [c], [a, b], [b, a], [a, c], [])}) == 7
