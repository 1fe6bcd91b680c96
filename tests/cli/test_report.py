"""``afa report``."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Afa
from tests.reproduce.studies import write_evaluation, write_run, write_study

SHARES = {"Full": 0.6, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.5}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "table1", SHARES, items=10)


def test_report_prints_the_table_and_writes_what_is_asked_for(
    afa: Afa, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    places = [tmp_path / "out" / name for name in ("page.html", "table.md", "numbers.json")]
    done = afa("report", study, "--out", places[0], "--markdown", places[1], "--json", places[2])
    assert done.code == 0
    for part in (
        "AFA-LoRA A-σ-B",
        "95 % interval",
        "gap closed",
        "LoRA",
        *(f"Written to {place}." for place in places),
    ):
        assert part in done.out
    assert places[0].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert places[1].read_text(encoding="utf-8").startswith("## Commonsense reasoning")
    (table,) = json.loads(places[2].read_text(encoding="utf-8"))["studies"]
    for sentence in table["outcome"]:
        assert sentence in done.out


def test_the_page_alone_is_written_by_default(
    afa: Afa, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    assert afa("report", study).code == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"report.html"}


def test_runs_that_are_not_evaluated_show_their_trainings(afa: Afa, tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lora")
    done = afa("report", tmp_path / "a", "--out", tmp_path / "report.html")
    assert done.code == 0
    for part in ("final loss", "800", "900 MiB", "not evaluated"):
        assert part in done.out
    assert "gap closed" not in done.out


def test_a_folder_with_a_typo_is_one_message(afa: Afa, study: Path, tmp_path: Path) -> None:
    refused = afa("report", study.parent / "tabel1", "--out", tmp_path / "report.html")
    assert refused.code == 2
    assert "Did you mean 'table1'?" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "report.html").exists()


def test_evaluations_that_cannot_share_a_table_are_one_message(afa: Afa, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", 0.4, items=5)
    write_evaluation(tmp_path / "b", 0.4, items=5, protocol="likelihood")
    refused = afa("report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "report.html")
    assert refused.code == 2
    assert "protocol: 'paper' and 'likelihood'" in refused.err
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_names_its_option(afa: Afa, study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused = afa("report", study, "--out", tmp_path / "report.html", "--json", tmp_path / "file" / "numbers.json")
    assert refused.code == 2
    assert "--json" in refused.err


def test_names_with_brackets_are_printed_as_they_are(afa: Afa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_evaluation(tmp_path / "[red]run", 0.4, items=5)
    done = afa("report", tmp_path / "[red]run", "--out", tmp_path / "report.html")
    assert done.code == 0
    assert "[red]run" in done.out
