"""The hub's data sets; local ones with the ids and columns of the hub's go through the very same call."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

from afa_lora.data import CommonsenseData, DataError, load_data
from afa_lora.data.commonsense import TASKS, read_mix, read_tests
from tests.data.commonsense_items import numbered, write_lines


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All eight data sets: five items to train on and three to test on, of which one is the same."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    configs: dict[str, list[str]] = {}
    for task in TASKS.values():
        folder = tmp_path / task.hub / (task.config or "")
        folder.mkdir(parents=True, exist_ok=True)
        for split, records in (("train", numbered(task.name, 5)), (task.test, numbered(task.name, 3, start=4))):
            write_table(pyarrow.Table.from_pylist(records), folder / f"{split}-00000.parquet")
        if task.config:
            files = [{"split": split, "path": f"{task.config}/{split}-*"} for split in ("train", task.test)]
            configs.setdefault(task.hub, []).append(f"- config_name: {task.config}\n  data_files: {files}\n")
    for name, listed in configs.items():
        (tmp_path / name / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n")
    return tmp_path


def test_all_eight(hub: Path) -> None:
    said: list[str] = []
    tests = read_tests(None, report=said.append)
    rendered = [
        task.render(i, record) for task in TASKS.values() for i, record in enumerate(numbered(task.name, 3, start=4))
    ]
    assert tests == rendered
    assert said[:3] == [
        "allenai/ai2_arc (ARC-Challenge), split 'test': 3 items of ARC-Challenge, rendered from the original records.",
        "allenai/ai2_arc (ARC-Easy), split 'test': 3 items of ARC-Easy, rendered from the original records.",
        "google/boolq, split 'validation': 3 items of boolq, rendered from the original records.",
    ]


def test_the_mix_leaves_out_what_is_tested(hub: Path) -> None:
    said: list[str] = []
    mix = read_mix(None, ["piqa", "winogrande"], said.append)
    assert [(item.task, item.index) for item in mix] == [(task, i) for task in ("piqa", "winogrande") for i in range(4)]
    assert said[2] == (
        "8 train items (piqa 4, winogrande 4), compared with 2 test sets; left out: 1 piqa item found in a test set, "
        "1 winogrande item found in a test set."
    )


def test_a_recipe_without_a_folder_takes_the_hub(hub: Path) -> None:
    items = load_data(CommonsenseData(source="commonsense", tasks=["boolq"], test_items=2), [].append)
    assert (len(items.train), len(items.test)) == (4, 2)


def test_a_record_with_a_fault(hub: Path) -> None:
    for path in (hub / "ybisk" / "piqa").iterdir():
        path.unlink()
    write_lines(hub / "ybisk" / "piqa" / "validation.jsonl", [{"goal": "a", "sol1": "b", "sol2": "c", "label": -1}] * 2)
    with pytest.raises(DataError) as caught:
        read_tests(None, ["piqa"], report=[].append)
    assert str(caught.value) == (
        "ybisk/piqa, split 'validation': 2 rows cannot be read:\n"
        "  item 0, item 1: 'label' is '-1', and must be one of 0, 1."
    )


def test_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Rowan/hellaswag, split 'validation': it cannot be loaded from the hub") as e:
        read_tests(None, ["hellaswag"], report=[].append)
    assert "name a folder of the eight tasks, as data.folder=PATH or --data PATH." in str(e.value)


def test_a_split_that_is_not_there(hub: Path) -> None:
    (hub / "google" / "boolq" / "validation-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"google/boolq, split 'validation': it cannot be loaded .*Unknown split"):
        read_tests(None, ["boolq"], report=[].append)
