"""A folder of the eight tasks: what is read, drawn and left out, and what is said about what is wrong."""

import bz2
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afa_lora.data import DataError
from afa_lora.data.commonsense import TASKS, CommonsenseItem, files, read_mix, read_mix_file, read_tests
from tests.data.commonsense_items import RECORDS, numbered, row, rows, write_folder, write_json, write_lines


def quietly(line: str) -> None:
    """Takes a line of the report."""


def same(items: list[CommonsenseItem], records: list[dict[str, Any]], task: str) -> bool:
    return items == [TASKS[task].render(i, record) for i, record in enumerate(records)]


def test_both_parts_in_the_papers_order(tmp_path: Path) -> None:
    write_folder(tmp_path, train=dict.fromkeys(TASKS, 2), test=dict.fromkeys(reversed(TASKS), 3))
    said: list[str] = []
    tests = read_tests(tmp_path, report=said.append)
    assert [(item.task, item.index) for item in tests] == [(task, i) for task in TASKS for i in range(3)]
    assert said[0] == f"{tmp_path}/ARC-Challenge/test.json: 3 test items of ARC-Challenge."
    assert len(said) == 8
    mix = read_mix(tmp_path, ["piqa", "boolq"], said.append)
    assert [item.task for item in mix] == ["boolq", "boolq", "piqa", "piqa"]
    assert said[10] == "4 train items (boolq 2, piqa 2), compared with 8 test sets."


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("arc-easy", "ARC-Easy"),
        ("ARC-C", "ARC-Challenge"),
        ("BoolQ", "boolq"),
        ("Social IQA", "social_i_qa"),
        ("HelaSwag", "hellaswag"),
        ("winogrand", "winogrande"),
    ],
)
def test_a_task_with_a_typo(tmp_path: Path, name: str, known: str) -> None:
    for read in (read_tests, read_mix):
        with pytest.raises(DataError, match=rf"tasks: '{name}' is no task\. Did you mean '{known}'\? Choose of ARC-Ch"):
            read(tmp_path, ["boolq", name], report=quietly)


def test_no_task_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tasks names no task"):
        read_tests(tmp_path, [], report=quietly)


def test_a_draw_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    write_folder(tmp_path, train={}, test={"boolq": 60, "piqa": 30})
    said: list[str] = []
    everything = read_tests(tmp_path, ["boolq", "piqa"], report=quietly)
    ten, twenty = (read_tests(tmp_path, ["boolq"], limit, said.append) for limit in (10, 20))
    assert ten == twenty[:10]
    assert said[1] == "10 test items: 10 of each task, or all it has, drawn by a fixed seed."
    assert [item.index for item in ten] != sorted(item.index for item in ten)
    assert set(twenty) < set(everything)
    assert read_tests(tmp_path, ["piqa", "boolq"], 10, quietly)[:10] == ten
    assert len(read_tests(tmp_path, ["boolq", "piqa"], 40, quietly)) == 70


def test_the_draw_is_fixed(tmp_path: Path) -> None:
    write_folder(tmp_path, train={}, test={"boolq": 1000})
    drawn = read_tests(tmp_path, ["boolq"], 5, quietly)
    assert [item.index for item in drawn] == [13, 776, 951, 612, 263]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path, train={"boolq": 1}, test={"boolq": 1, "piqa": 1})
    with pytest.raises(DataError) as caught:
        read_tests(tmp_path, ["boolq", "hellaswag", "ARC-Easy"], report=quietly)
    kinds = ".jsonl, .jsonl.gz, .parquet, .zip, .txt.bz2"
    assert str(caught.value) == (
        f"{tmp_path} has no test set of ARC-Easy, hellaswag. Looked for TASK/test.json, or an original file in TASK/ "
        f"({kinds}) with one of these words in its name:\n  ARC-Easy: test\n  hellaswag: validation, valid, val, dev\n"
        "To test on the others alone, name them: boolq."
    )
    said: list[str] = []
    assert len(read_mix(tmp_path, report=said.append)) == 1
    others = ", ".join(task for task in TASKS if task != "boolq")
    assert said[1] == f"{tmp_path}: no train set of {others}."
    with pytest.raises(DataError, match=r"has no train set of piqa\. .*in its name:\n  piqa: train$"):
        read_mix(tmp_path, ["boolq", "piqa"], quietly)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no train set of ARC-Challenge, .*winogrande"):
        read_mix(tmp_path / "empty", report=quietly)
    with pytest.raises(DataError, match=r"/nowhere: there is no such folder \(looked for it in "):
        read_tests(tmp_path / "nowhere", report=quietly)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"answer": None}, "'answer' must be a text, not null."),
        ({"answer": "answer3"}, "'answer' is 'answer3', and allowed is one of solution1/solution2."),
        (
            {"output": "solution1"},
            "'output' is 'solution1', and with this 'answer' must be 'the correct answer is solution1'.",
        ),
        ({"input": "Think."}, "'input' must be empty in this form, and is 'Think.'."),
        (
            {"instruction": "Please choose the correct solution to the question: why?"},
            "'instruction' must end with 'Answer format: ' and the allowed answers, such as solution1/solution2, and "
            "ends 'Please choose the correct solution to the question: why?'.",
        ),
        (
            row("boolq"),
            "'instruction' must begin with 'Please choose the correct solution to the question: ', and begins "
            "'Please answer the following question with true or false, que'.",
        ),
    ],
)
def test_an_item_with_a_fault(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = write_json(tmp_path / "piqa" / "test.json", [row("piqa", 0), row("piqa", 1, **changes)])
    with pytest.raises(DataError) as caught:
        read_tests(tmp_path, ["piqa"], report=quietly)
    assert str(caught.value) == f"{path}, item 1 (line 8): {fault}"


@pytest.mark.parametrize("part", ["train", "test"])
def test_all_items_with_a_missing_field_are_told(tmp_path: Path, part: str) -> None:
    items = rows("piqa", 20)
    for item in items[3:]:
        del item["answer"]
    items[0]["anser"] = items[0].pop("answer")
    path = write_json(tmp_path / "piqa" / f"{part}.json", items)
    with pytest.raises(DataError) as caught:
        (read_tests if part == "test" else read_mix)(tmp_path, ["piqa"], report=quietly)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 18 rows cannot be read, the first 10 of which are:"
    assert lines[1].startswith("  item 0 (line 2): there is no field 'answer'. Did you mean 'anser'? It has: instruct")
    assert lines[2].startswith("  item 3 (line 20), item 4 (line 25), ")
    assert lines[2].endswith(": there is no field 'answer'. It has: instruction, input, output.")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "test.json holds no items."),
        ("[", "test.json, line 1: this is not valid JSON"),
        ('["a"]', r'item 0 \(line 1\): expected a JSON object, found "a"'),
    ],
)
def test_a_file_without_items(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "test.json").write_text(content)
    with pytest.raises(DataError, match=fault):
        read_tests(tmp_path, ["piqa"], report=quietly)


def test_tested_items_are_not_trained_on(tmp_path: Path) -> None:
    write_folder(tmp_path, train={}, test={"ARC-Easy": 5, "ARC-Challenge": 5})
    train = rows("ARC-Easy", 8, start=3)
    write_json(tmp_path / "ARC-Easy" / "train.json", [*train, train[-1], row("ARC-Challenge", 4)])
    said: list[str] = []
    mix = read_mix(tmp_path, ["ARC-Easy"], said.append)
    assert [item.index for item in mix] == [2, 3, 4, 5, 6, 7, 8]
    assert said[1] == (
        "7 train items, 1 of them with the instruction of an earlier one (ARC-Easy 7), compared with 2 test sets; "
        "left out: 3 ARC-Easy items found in a test set."
    )
    write_json(tmp_path / "ARC-Easy" / "train.json", rows("ARC-Easy", 5))
    with pytest.raises(DataError, match="nothing to train on: all 5 train items are also in a test set"):
        read_mix(tmp_path, report=quietly)


def test_the_ready_form_is_preferred(tmp_path: Path) -> None:
    write_folder(tmp_path, train={}, test={"piqa": 2})
    write_lines(tmp_path / "piqa" / "valid.jsonl", numbered("piqa", 3))
    said: list[str] = []
    assert len(read_tests(tmp_path, ["piqa"], report=said.append)) == 2
    assert said == [f"{tmp_path}/piqa/test.json: 2 test items of piqa; not read: valid.jsonl."]


def test_the_largest_of_several_sizes(tmp_path: Path) -> None:
    for size, count in (("l", 9), ("m", 4), ("xs", 1)):
        write_lines(tmp_path / "winogrande" / f"train_{size}.jsonl", numbered("winogrande", count))
    said: list[str] = []
    assert same(read_mix(tmp_path, report=said.append), numbered("winogrande", 9), "winogrande")
    assert said[0] == (
        f"{tmp_path}/winogrande/train_l.jsonl: 9 train items of winogrande, rendered from the original records, the "
        "largest of 3 .jsonl files; not read: train_m.jsonl, train_xs.jsonl."
    )


def without(records: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != column} for record in records]


def test_labels_beside_the_records(tmp_path: Path) -> None:
    records = [{**record, "label": i % 2} for i, record in enumerate(numbered("piqa", 4))]
    path = write_lines(tmp_path / "piqa" / "valid.jsonl", without(records, "label"))
    with pytest.raises(DataError, match=r"4 rows cannot be read:.*\n.*there is no field 'label'"):
        read_tests(tmp_path, ["piqa"], report=quietly)
    labels = tmp_path / "piqa" / "valid-labels.lst"
    labels.write_text("0\n1\n0\n1\n")
    assert same(read_tests(tmp_path, ["piqa"], report=quietly), records, "piqa")
    labels.write_text("0\n1\n0\n")
    with pytest.raises(DataError, match=f"{path} has 4 items, {labels} 3 labels. There must be one label a line"):
        read_tests(tmp_path, ["piqa"], report=quietly)
    labels.write_text("0\n1\n0\n2\n")
    with pytest.raises(DataError, match=r"item 3 \(line 4\): 'label' is '2', and must be one of 0, 1"):
        read_tests(tmp_path, ["piqa"], report=quietly)


def test_compressed_lines(tmp_path: Path) -> None:
    records = numbered("hellaswag", 3)
    path = write_lines(tmp_path / "hellaswag" / "hellaswag_val.jsonl", records)
    (path.parent / "hellaswag_val.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert same(read_tests(tmp_path, ["hellaswag"], report=quietly), records, "hellaswag")


def zipped(folder: Path, members: dict[str, str]) -> Path:
    path = folder / "social_i_qa" / "socialiqa-train-dev.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def lines(records: list[dict[str, Any]]) -> str:
    return "\n".join(map(json.dumps, records))


def test_an_archive(tmp_path: Path) -> None:
    train, dev = numbered("social_i_qa", 5), numbered("social_i_qa", 2, start=10)
    members = {
        "__MACOSX/top/dev.jsonl": "not JSON, and larger than the real one" * 100,
        "../../train.jsonl": "{}",
        "top/._train.jsonl": "x" * 5000,
        "top/train.jsonl": lines(without(train, "label")),
        "top/train-labels.lst": "1\n" * 5,
        "top/dev.jsonl": lines(dev),
    }
    zipped(tmp_path, members)
    assert same(read_tests(tmp_path, ["social_i_qa"], report=quietly), dev, "social_i_qa")
    assert same(read_mix(tmp_path, ["social_i_qa"], quietly), train, "social_i_qa")
    assert {path.name for path in tmp_path.rglob("*")} == {"social_i_qa", "socialiqa-train-dev.zip"}


def test_an_archive_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> list[CommonsenseItem]:
        return read_tests(tmp_path, ["social_i_qa"], report=quietly)

    path = zipped(tmp_path, {"top/dev.json": "[]", "top/train.jsonl": "{}"})
    with pytest.raises(DataError, match=r"dev.zip has no member such as \w+.jsonl. It has: top/dev.json, top/train.js"):
        read()
    zipped(tmp_path, {"dev.jsonl": '{"context": \n"a"'})
    with pytest.raises(DataError, match=r"item 0 \(line 1 of dev.jsonl\): this is not valid JSON: .*\n.*line 2 of dev"):
        read()
    path = zipped(tmp_path, {"dev.jsonl": lines(numbered("social_i_qa", 500))})
    assert len(read()) == 500
    monkeypatch.setattr(files, "MOST_BYTES", 10_000)
    with pytest.raises(DataError, match=r"dev.jsonl unpacks to \d{5,} bytes; at most 10000 are read"):
        read()
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"dev.zip: this is no zip file that can be read: File is not a zip file"):
        read()


def as_text(records: list[dict[str, Any]]) -> list[str]:
    return [
        line
        for record in records
        for line in (f"{record['activity_label']}: {record['ctx']}", record["label"], *record["endings"])
    ]


def test_hellaswag_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hellaswag" / "hellaswag_val_full.txt.bz2"
    path.parent.mkdir()
    records = numbered("hellaswag", 30)
    text = as_text(records)

    def write(content: list[str], change: Callable[[bytes], bytes] = bytes) -> None:
        path.write_bytes(change(bz2.compress("".join(f"{line}\n" for line in content).encode())))

    def read() -> list[CommonsenseItem]:
        return read_tests(tmp_path, ["hellaswag"], report=quietly)

    write(text)
    assert same(read(), records, "hellaswag")
    write(text[:-1])
    with pytest.raises(DataError, match=r"item 29 \(line 175\): expected six lines: 'activity: context'"):
        read()
    write([text[0], "4", *text[2:]])
    with pytest.raises(DataError, match=r"item 0 \(line 1\): 'label' is '4', and must be one of 0, 1, 2, 3"):
        read()
    write(text, lambda content: content[:-20])
    with pytest.raises(DataError, match="this is no whole bz2 file"):
        read()
    write(text)
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    with pytest.raises(DataError, match="unpacks to more than 1000 bytes"):
        read()


def test_a_mixed_file(tmp_path: Path) -> None:
    write_folder(tmp_path / "tests", train={}, test={"piqa": 2})
    items = [row(task) for task in RECORDS]
    path = write_json(tmp_path / "commonsense_170k.json", [*items, *rows("piqa", 4), items[0]])
    said: list[str] = []
    mix = read_mix_file(path, tmp_path / "tests", said.append)
    unknown = {"ARC-Challenge", "ARC-Easy", "openbookqa", "social_i_qa"}
    tasks = ["unknown" if task in unknown else task for task in RECORDS]
    assert [item.task for item in mix] == [*tasks, "piqa", "piqa", "unknown"]
    assert [item.index for item in mix] == [*range(8), 10, 11, 12]
    assert said == [
        f"{path}: 13 items; 5 of ARC, OpenBookQA or Social IQA: these share a form, so the task is unknown.",
        "11 train items, 1 of them with the instruction of an earlier one (unknown 5, boolq 1, hellaswag 1, piqa 3, "
        "winogrande 1), compared with 1 test set; left out: 2 piqa items found in a test set.",
    ]


def test_a_mixed_file_with_faults(tmp_path: Path) -> None:
    path = write_json(tmp_path / "mix.json", [row("boolq"), row("boolq", instruction="How are you?")])
    with pytest.raises(DataError, match=r"item 1 \(line 8\): 'instruction' begins like none of the eight tasks"):
        read_mix_file(path, None, quietly)
    with pytest.raises(DataError, match=r"there is no such file .*\. Did you mean 'mix.json'\?"):
        read_mix_file(tmp_path / "mixx.json", None, quietly)
    (tmp_path / "mix.txt").write_text("")
    with pytest.raises(DataError, match=r"mix\.txt: not of a known kind, which are \.json, "):
        read_mix_file(tmp_path / "mix.txt", None, quietly)
    with pytest.raises(DataError, match=r"is a folder\. Name a file; the folder of the tasks is data\.folder"):
        read_mix_file(tmp_path, None, quietly)
