"""Hub data sets; a local folder in the hub's layout goes through the very same call."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError, HubData, Items, load_data

COLUMNS = {"prompt": "question", "completion": "answer"}
CONFIGS = """---
configs:
- {config_name: main, data_files: train.jsonl}
- {config_name: other, data_files: test.jsonl}
---
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve items to train on, four to test on."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "sums"
    path.mkdir()
    for split, count in (("train", 12), ("test", 4)):
        rows = [{"question": f"{split} {i} + {i}", "answer": str(2 * i)} for i in range(count)]
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def load(folder: Path, said: list[str] | None = None, **changes: Any) -> Items:
    settings = {"name": str(folder), "columns": COLUMNS, "test_items": 4, **changes}
    return load_data(HubData(source="hub", **settings), [].append if said is None else said.append)


def test_splits_and_columns(folder: Path) -> None:
    said: list[str] = []
    items = load(folder, said, test="test")
    assert len(items.train) == 12
    assert items.test[3].prompt[0]["content"] == "test 3 + 3"
    assert items.test[3].completion == "6"
    renamed = "records as prompt-completion, question read as prompt, answer read as completion"
    assert said == [
        f"{folder}, split 'train': 12 {renamed}; 12 samples.",
        f"{folder}, split 'test': 4 {renamed}; 4 samples.",
        "12 items to train on, 4 to test on.",
    ]


def test_held_out_of_the_training_split(folder: Path) -> None:
    items = load(folder)
    assert (len(items.train), len(items.test)) == (8, 4)


def test_form_chooses_where_two_fit(folder: Path) -> None:
    row = {"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}
    (folder / "train.jsonl").write_text(json.dumps(row))
    (folder / "test.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"item 0: the record has the columns of prompt-completion .* and of instruction"
    ):
        load(folder, columns={}, test_items=0)
    assert load(folder, columns={}, test_items=0, form="instruction").train[0].completion == "d"


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (
            {"columns": {"prompt": "quesion"}},
            [
                "12 rows cannot be read",
                "item 0, item 1,",
                "there is no column 'quesion'",
                "mean 'question'?",
                "'answer'.",
            ],
        ),
        (
            {"columns": {}},
            ["split 'train': 12 rows cannot be read", "item 9: the record has the columns 'question', 'answer'"],
        ),
        ({"train": "tran"}, ["split 'tran': Unknown split", "['train', 'test']", "Did you mean 'train'?"]),
        ({"config": "defult"}, ["data.config='defult'", "Available: ['default'] Did you mean 'default'?"]),
        (
            {"name": "nobody/nothing"},
            ["data.name='nobody/nothing': the hub cannot be reached", "source=file data.train"],
        ),
        (
            {"name": "/no/where"},
            ["data.name='/no/where' is not found on the hub, and no folder", "source=file data.train"],
        ),
    ],
)
def test_what_is_wrong_is_named(folder: Path, changes: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load(folder, **changes)
    for fault in faults:
        assert fault in str(caught.value)


def test_a_configuration_must_be_chosen_where_there_are_two(folder: Path) -> None:
    (folder / "README.md").write_text(CONFIGS)
    with pytest.raises(DataError, match=r"data\.config=None.*Please pick one .*\['main', 'other'\]") as caught:
        load(folder)
    assert "Did you mean" not in str(caught.value)
    assert len(load(folder, config="other", test_items=1).train) == 3


def test_a_split_without_an_answer(folder: Path) -> None:
    (folder / "train.jsonl").write_text(json.dumps({"conversations": [{"from": "human", "value": "a"}]}))
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match="split 'train' holds no records to learn from"):
        load(folder, columns={})


def test_a_malformed_file_of_a_data_set(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"question": "a", "answer":\n')
    with pytest.raises(DataError, match=r"cannot be read: .*JSON parse error.* data\.source=file data\.train=PATH"):
        load(folder)


def test_a_data_set_that_is_a_program(folder: Path) -> None:
    program = folder / "sums.py"
    program.write_text("raise SystemExit('this must not run')")
    with pytest.raises(
        DataError, match=r"Dataset scripts are no longer supported.* data\.source=file data\.train=PATH"
    ):
        load(program)


class _NotFound(BaseHTTPRequestHandler):
    """A hub that has nothing."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def empty_hub() -> Iterator[int]:
    """The port of a hub that has nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


PROGRAM = """
from afa_lora.data import DataError, HubData, load_data
try:
    load_data(HubData(source="hub", name="nobody/nothing"))
except DataError as error:
    print(error)
"""


@pytest.mark.integration
def test_a_name_that_the_hub_does_not_know(tmp_path: Path, empty_hub: int) -> None:
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{empty_hub}", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **settings, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith(
        "data.name='nobody/nothing' is not found on the hub, and no folder here has that name"
    )
    assert "data.source=file data.train=PATH" in done.stdout
