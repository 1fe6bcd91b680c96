"""Local files of every kind, folders of them, and one clear message for whatever is wrong with one."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from afa_lora.data import DataError, FileData, fingerprint, load_data
from afa_lora.data.files import MOST_NAMES, READERS, find_files
from tests.data.reading import numbered, questions, read, write


def encoded(records: list[dict[str, Any]], kind: str) -> bytes:
    """The records as a file of a kind."""
    if kind.endswith(".gz"):
        return gzip.compress(encoded(records, kind.removesuffix(".gz")))
    buffer = io.BytesIO()
    if kind == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), buffer)
        return buffer.getvalue()
    if kind == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue().encode()
    return (json.dumps(records, indent=2) if kind == ".json" else "\n".join(map(json.dumps, records))).encode()


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_of_file_holds_the_same(tmp_path: Path, kind: str) -> None:
    records = [{"prompt": f'[{i}, {{ "é,\n', "completion": "]\n" + "long" * 50_000 * (i == 3)} for i in range(5)]
    path = tmp_path / f"my.data{kind.upper()}"
    path.write_bytes(encoded(records, kind))
    assert [sample.entry for sample in read(path)] == records


@pytest.mark.parametrize("kind", [".json", ".jsonl.gz", ".csv"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, kind: str) -> None:
    content = "\ufeff".encode() + encoded(numbered(2), kind.removesuffix(".gz"))
    path = tmp_path / f"data{kind}"
    path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    assert questions(read(path)) == ["item 0", "item 1"]


GOOD = '{"prompt": "a", "completion": "b"}'


@pytest.mark.parametrize(
    ("content", "line", "fault"),
    [
        (f'{GOOD}\n\n{{"prompt": "a" "completion": "b"}}', 3, "not valid JSON: Expecting ',' delimiter at column 16"),
        (f'[\n{GOOD[:14]}\n{GOOD[14:]},\n{{"prompt" "a"}}\n]', 4, "not valid JSON: Expecting ':'"),
        (f'[\n{GOOD[:14]}\n{GOOD[14:]},\n\n{{"prompt": "a"}}\n]', 5, "the record has the columns 'prompt'"),
        (f"{GOOD}\n7", 2, "expected a JSON object, found 7"),
        ("\n".join([GOOD] * 16 + [GOOD[:-1]] + [GOOD] * 3), 17, "this is not valid JSON: Expecting ',' delimiter"),
        ('\n[{"prompt": "a"}', 2, "this is not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json.gz"])
def test_a_malformed_json_file(tmp_path: Path, content: str, line: int, fault: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "fault"),
    [
        ('prompt,completion\n"a\nb",c\n\nd\n', 5, "1 value for the 2 columns prompt, completion"),
        ('prompt,completion\n"a\nb",c\nd,"e\n', 4, "this is not valid CSV: unexpected end of data"),
        ('prompt,completion\na,b\n"c"d,e\n', 3, "this is not valid CSV: ',' expected after '\"'"),
        ('prompt,completion\n"a\nb",c\nd,\n', 4, "'completion' is empty"),
        ("prompt;completion\na;b\n", 1, "the only column is 'prompt;completion'. Save it as .csv with commas between"),
        ("prompt\tcompletion\na\tb\n", 1, "the only column is 'prompt\\tcompletion'. Save it as .csv with commas"),
        ("prompt,prompt\na,b\n", 1, "a different name for each column, not prompt, prompt"),
        ("prompt,\na,b\n", 1, "a different name for each column"),
    ],
)
def test_a_malformed_csv_file(tmp_path: Path, content: str, line: int, fault: str) -> None:
    path = write(tmp_path, content, "data.csv")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}, line {line}: " in str(caught.value)
    assert fault in str(caught.value)


def test_a_bad_row_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(encoded([*numbered(16), {"prompt": "a", "completion": None}], ".parquet"))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, row 17: 'completion' must hold something, not null."


@pytest.mark.parametrize(
    ("name", "fault"), [("data.parquet", "no readable Parquet file"), ("data.csv.gz", "no whole gzip")]
)
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, fault: str, damage: str) -> None:
    path = tmp_path / name
    whole = encoded(numbered(200), name.removeprefix("data"))
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"not at all")
    with pytest.raises(DataError, match=fault) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_bytes_that_are_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}')
    with pytest.raises(DataError, match=r"line 2: this is not UTF-8 text \(.*\); save the file as UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.csv", "\n\n"), ("a.csv", "prompt,completion\n")],
)
def test_a_file_without_records(tmp_path: Path, name: str, content: str) -> None:
    said: list[str] = []
    path = write(tmp_path, content, name)
    with pytest.raises(DataError, match=r"holds no records to learn from\."):
        read(path, said)
    assert said == [f"{path}: 0 records; 0 samples."]


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, numbered(1), "train.jsonl")
    with pytest.raises(DataError) as caught:
        read(Path("trian.jsonl"))
    assert str(caught.value) == (
        f"trian.jsonl: there is no such file or folder (looked for it in {tmp_path}). Did you mean 'train.jsonl'?"
    )
    with pytest.raises(DataError, match="no such file or folder"):
        read(Path("nowhere/train.jsonl"))


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    path = write(tmp_path, "a", "data.tsv")
    with pytest.raises(
        DataError, match=r"data\.tsv: not of a known kind, which are \.json, .*\.parquet\. Save it as \.csv"
    ):
        read(path)
    with pytest.raises(DataError, match=r"data\.txt: not of a known kind, .*\.parquet\.$"):
        read(write(tmp_path, "a", "data.txt"))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    records = numbered(12)
    parts = {"b.jsonl": records[4:6], "a/2.csv": records[2:4], "a/1.json.gz": records[:2], "c.parquet": records[6:]}
    prints = []
    for folder, names in (("one", parts), ("two", reversed(parts))):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(parts[name], "".join(path.suffixes)))
        write(tmp_path / folder, "not read", ".hidden.jsonl")
        write(tmp_path / folder, "not read", ".cache/data.jsonl")
        said: list[str] = []
        samples = read(tmp_path / folder, said)
        assert [sample.entry for sample in samples] == records
        assert [line.split(": ")[1] for line in said] == [
            f"{count} records as prompt-completion; {count} samples." for count in (2, 2, 2, 6)
        ]
        prints.append(fingerprint(samples))
    assert prints[0] == prints[1]


def test_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    write(tmp_path, numbered(2), "data/a.jsonl")
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "data/about.txt"):
        write(tmp_path, "{\n}", name)
    said: list[str] = []
    assert questions(read(tmp_path, said)) == ["item 0", "item 1"]
    passed = "README.md, data/about.txt, dataset_infos.json"
    assert said[0] == f"{tmp_path}: passed over 3 files of other kinds: {passed}."
    assert len(said) == 2


def test_of_many_other_files_some_are_named(tmp_path: Path) -> None:
    write(tmp_path, numbered(1))
    for number in range(MOST_NAMES + 2):
        write(tmp_path, "a", f"{number:02}.txt")
    said: list[str] = []
    read(tmp_path, said)
    assert said[0].endswith(f"passed over {MOST_NAMES + 2} files of other kinds: {NAMES} and 2 more.")


NAMES = ", ".join(f"{number:02}.txt" for number in range(MOST_NAMES))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, numbered(2), "data/train.jsonl")
    write(tmp_path, numbered(1), "data/test.jsonl")
    for train in ("~/data/train.jsonl", "~/data"):
        source = FileData(source="file", train=Path(train), test=Path("~/data/test.jsonl"))
        assert questions(load_data(source, [].append).test) == ["item 0"]
    with pytest.raises(DataError, match="there is no such file or folder"):
        read(Path("~nobody-of-this-name/train.jsonl"))


def test_bad_lines_are_told_together(tmp_path: Path) -> None:
    good, cut, empty = '{"prompt": "a", "completion": "b"}', '{"prompt": "a"', '{"prompt": "a", "completion": ""}'
    path = write(tmp_path, "\n".join([good, cut, empty, good, "7", empty]))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).split("\n") == [
        f"{path}: 4 rows cannot be read:",
        "  line 2: this is not valid JSON: Expecting ',' delimiter at column 15.",
        "  line 3, line 6: 'completion' is empty.",
        "  line 5: expected a JSON object, found 7.",
    ]


def test_of_many_bad_lines_the_first_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt,completion\n" + "a\n" * 11 + "a,b\n" + "a,b,c\n" * 30, "data.csv")
    with pytest.raises(DataError) as caught:
        read(path)
    lines = ", ".join(f"line {number}" for number in range(2, 12))
    assert str(caught.value).split("\n") == [
        f"{path}: 41 rows cannot be read, the first 10 of which are:",
        f"  {lines}: 1 value for the 2 columns prompt, completion.",
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_records_in_an_object(tmp_path: Path, indent: int | None) -> None:
    path = write(tmp_path, json.dumps({"version": 1, "data": numbered(3)}, indent=indent), "data.json")
    with pytest.raises(DataError, match=r"If the records are in 'data', give that list itself\.$") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")


def test_one_record_over_several_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "\n" + json.dumps(numbered(1)[0], indent=2), "data.json")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, line 2: one JSON object over several lines; give a list of records, [...]."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, r"\.parquet\.$"),
        (".hidden.jsonl", r"\.parquet\.$"),
        ("dataset_info.json", r"Passed over 1 file of other kinds: dataset_info\.json\.$"),
        ("a.tsv", r"Passed over 1 file of other kinds: a\.tsv\. Save it as \.csv with commas between the columns\.$"),
    ],
)
def test_a_folder_without_data(tmp_path: Path, name: str | None, said: str) -> None:
    if name:
        write(tmp_path, numbered(1), name)
    with pytest.raises(DataError, match=rf"has no data files in it\. It may hold \.json.*{said}"):
        find_files(tmp_path, [].append)


@pytest.mark.parametrize("name", ["ARC-Easy", "ARC-Challenge", "boolq", "openbookqa"])
def test_real_files_read_whole(real_data: Path, name: str) -> None:
    folder = real_data / "commonsense" / name
    said: list[str] = []
    items = load_data(FileData(source="file", train=folder / "train.json", test=folder / "test.json"), said.append)
    assert len(items.train) > 1000
    assert all(sample.completion.startswith("the correct answer is ") for sample in items.train)
    records = json.loads((folder / "train.json").read_text())
    assert (
        said[0]
        == f"{folder / 'train.json'}: {len(records)} records as instruction; {len(records)} samples; not used: answer."
    )


def test_real_questions_with_columns(real_data: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    folder = real_data / "gsm8k"
    source = FileData(source="file", train=folder / "train.jsonl", test=folder / "test.jsonl", columns=columns)
    items = load_data(source, [].append)
    assert len(items.train) == 7473
    assert all("#### " in sample.completion for sample in items.train + items.test)
    with pytest.raises(
        DataError, match=r"7473 rows cannot be read.*\n  line 1, .*, line 10: the record has the columns"
    ):
        load_data(source.model_copy(update={"columns": {}}), [].append)


def test_real_conversations(real_data: Path) -> None:
    said: list[str] = []
    path = real_data / "conversations/sharegpt_v3_part/sharegpt_v3_part_01.jsonl.gz"
    samples = read(path, said)
    entries = [json.loads(line)["conversations"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    turns = [turn["from"] for entry in entries for turn in entry]
    assert all(sample.prompt[-1]["role"] in {"user", "assistant"} and sample.completion.strip() for sample in samples)
    assert all(sample.prompt[0]["role"] in {"user", "system"} for sample in samples)
    left_out = sum(int(part.split()[0]) for part in said[0].split("left out: ")[1].split(", ") if "answers" in part)
    answers = sum(turn not in {"human", "user", "system"} for turn in turns)
    assert len(samples) + left_out == answers
    assert f"{len(entries)} records as sharegpt; {len(samples)} samples; left out: " in said[0]


def test_a_real_folder(real_data: Path) -> None:
    folder = real_data / "conversations/stanford_alpaca_part"
    said: list[str] = []
    items = load_data(FileData(source="file", train=folder), said.append)
    assert [line.split(": ")[1] for line in said[:2]] == [
        f"{count} records as instruction; {count} samples." for count in (2000, 500)
    ]
    assert (len(items.test), len(items.train) + items_left_out(said[2])) == (100, 2400)


def items_left_out(line: str) -> int:
    """How many training items the last line says are tested on."""
    assert "held out with seed 0" in line
    return int(line.split("left out: ")[1].split()[0])
