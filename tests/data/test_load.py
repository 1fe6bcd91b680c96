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
        "8 training items beyond data.train_items=10, 1 test item beyond data.test_items=2."
    )


def conversation(number: int, turns: int) -> dict[str, Any]:
    """A conversation in which every question and every answer is its own."""
    pairs = [[("user", f"question {number}.{i}"), ("assistant", f"answer {number}.{i}")] for i in range(turns)]
    return {"messages": [{"role": role, "content": text} for pair in pairs for role, text in pair]}


def contents(samples: list[Sample]) -> set[str]:
    """All that stands in prompts and answers."""
    return {m["content"] for s in samples for m in s.prompt} | {s.completion for s in samples}


@pytest.mark.parametrize("seed", range(5))
def test_a_conversation_is_on_one_side(tmp_path: Path, seed: int) -> None:
    train = write(tmp_path, [conversation(number, 1 + number % 7) for number in range(40)])
    said: list[str] = []
    items = load(said, train=train, test_items=10, seed=seed)
    assert len(items.test) == 10
    assert not contents(items.test) & contents(items.train)
    cut = 155 - 10 - len(items.train)
    ending = f"; left out: {cut} item{'s' * (cut > 1)} of the held-out records beyond the 10." if cut else "."
    assert said[1] == f"{len(items.train)} items to train on, 10 to test on, held out with seed {seed}{ending}"


@pytest.mark.parametrize("seed", range(5))
def test_records_that_share_a_prompt_are_on_one_side(tmp_path: Path, seed: int) -> None:
    twice = [{**record, "completion": f"{i}"} for i in range(10) for record in numbered(2)]
    items = load(train=write(tmp_path, twice), test_items=4, seed=seed)
    assert (len(items.test), len(items.train)) == (4, 10)
    assert not set(questions(items.test)) & set(questions(items.train))


def test_records_are_linked_through_others(tmp_path: Path) -> None:
    first, second = conversation(1, 2)["messages"], conversation(2, 2)["messages"]
    records = [{"messages": turns} for turns in (first[:2], second[:2], first, second)]
    for count, seed in ((1, 0), (3, 1)):
        items = load(train=write(tmp_path, records), test_items=count, seed=seed)
        assert (len(items.test), len(items.train)) == (count, 3)
        assert not contents(items.test) & contents(items.train)


@pytest.mark.parametrize(("given", "can"), [({"test_items": 3}, "data.test_items=3, but none"), ({}, "none")])
def test_a_single_prompt_cannot_be_split(tmp_path: Path, given: dict[str, int], can: str) -> None:
    same = [{"prompt": "Tell me a joke.", "completion": f"joke {i}"} for i in range(20)]
    with pytest.raises(DataError) as caught:
        load(train=write(tmp_path, same), **given)
    assert str(caught.value) == (
        f"{can} of the items {TOGETHER} Give data.test a file or split of its own; data.test_items=0 tests on none."
    )
    assert len(load(train=tmp_path / "data.jsonl", test_items=0).train) == 20


@pytest.mark.parametrize(("there", "held_out"), [(2, 1), (19, 1), (60, 6), (999, 99), (1500, 100)])
def test_without_a_number_a_tenth_is_held_out(tmp_path: Path, there: int, held_out: int) -> None:
    said: list[str] = []
    items = load(said, train=write(tmp_path, numbered(there)))
    assert (len(items.test), len(items.train)) == (held_out, there - held_out)
    assert said[1].endswith(f", {held_out} to test on, held out with seed 0 (data.test_items is not set).")


@pytest.mark.parametrize(
    ("there", "tested", "said"),
    [
        (6, 6, "."),
        (100, 100, "."),
        (103, 100, "; left out: 3 test items beyond the first 100 (data.test_items is not set)."),
    ],
)
def test_without_a_number_the_first_of_a_test_file(tmp_path: Path, there: int, tested: int, said: str) -> None:
    lines: list[str] = []
    test = write(tmp_path, [{"prompt": f"test {i}", "completion": "x"} for i in range(there)], "test.jsonl")
    items = load(lines, train=write(tmp_path, numbered(2)), test=test)
    assert questions(items.test) == [f"test {i}" for i in range(tested)]
    assert lines[2] == f"2 items to train on, {tested} to test on{said}"


def test_without_a_reporter_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, numbered(3))
    load_data(FileData(source="file", train=path, test_items=0))
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 3 records as prompt-completion; 3 samples.",
        "3 items to train on, 0 to test on.",
    ]


TOGETHER = (
    "can be held out to test on: items of one record, and records that share a prompt, stay together, "
    "and some must be left to train on."
)


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
            f"data.test_items=20, but only 19 of the 20 items {TOGETHER} Set data.test_items to 19 or less, or give "
            "data.test a file or split of its own; data.test_items=0 tests on none.",
        ),
        (
            {"test_items": 4, "test": 3},
            "data.test_items=4, but data.test has only 3 items. Set data.test_items to 3 or less; 0 tests on none.",
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
