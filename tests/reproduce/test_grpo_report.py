"""What a report says of a study of GRPO follows from its files: gaps closed, what is not there, what is refused."""

import json
from pathlib import Path

import pytest

from afa_lora.reproduce.report import make_report
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import read_study
from tests.reproduce.studies import write_grpo_run, write_grpo_study

AFA = "AFA-LoRA A-σ-B"


def test_the_gap_closed_is_that_of_the_rewards(tmp_path: Path) -> None:
    write_grpo_study(tmp_path, {"Full": 0.8, "LoRA": 0.4, AFA: 0.5})
    report = make_report([tmp_path])
    (numbers,) = report.numbers["studies"]
    full, lora, afa, late = numbers["arms"]
    assert afa["gap_closed"]["value"] == pytest.approx((0.5 - 0.4) / (0.8 - 0.4))
    low, high = afa["gap_closed"]["interval_95"]
    assert 0.05 < low < 0.25 < high < 0.5
    in_training = afa["training_rewards"]["gap_closed"]
    assert in_training["value"] == pytest.approx(0.25, abs=0.05)
    assert in_training["interval_95"][1] - in_training["interval_95"][0] < 0.1
    assert afa["training_rewards"]["first_mean"] == pytest.approx(0.5 * 0.22, abs=0.02)  # of steps 1 to 10
    assert (lora["gap_closed"], full["gap_closed"], lora["training_rewards"]["gap_closed"]) == (None, None, None)
    assert late["accuracy"] == {}
    assert late["training_rewards"] is None
    assert [arm["paper_gaps_closed"] for arm in numbers["arms"]] == [{}, {}, {"3B": 0.4}, {"3B": 1.2}]
    (row,) = [line for line in report.markdown.splitlines() if line.startswith(f"| {AFA} |")]
    for part in ("50.00", "25 % (", "3B 40.0 %", "50 of 400"):
        assert part in row
    text = " ".join(report.page.split())
    for part in ("<em>not started</em>", "50 of 400", "AFA-LoRA A-σ-B is better than LoRA: +10.00 points"):
        assert part in text.replace('<span class="word">AFA-LoRA</span>', "AFA-LoRA").replace(
            '<span class="word">A-σ-B</span>', "A-σ-B"
        )


def test_where_full_fine_tuning_has_no_lead_there_is_no_gap(tmp_path: Path) -> None:
    write_grpo_study(tmp_path, {"Full": 0.41, "LoRA": 0.4, AFA: 0.5}, items=50)
    (numbers,) = make_report([tmp_path]).numbers["studies"]
    afa = numbers["arms"][2]
    assert afa["gap_closed"]["value"] is None
    assert "not clearly better than the baseline: the 95 % interval of its lead is" in afa["gap_closed"]["reason"]


def test_tests_of_other_items_do_not_share_a_table(tmp_path: Path) -> None:
    write_grpo_run(tmp_path / "a", "lora", 0.4)
    write_grpo_run(tmp_path / "b", "lora", 0.4, data="b" * 16)
    with pytest.raises(StudyError, match="cannot share a table:\n  data: 'aaaaaaaaaaaaaaaa' and 'bbbbbbbbbbbbbbbb'"):
        make_report([tmp_path / "a", tmp_path / "b"])
    write_grpo_run(tmp_path / "untested", "afa-lora", 0.4, items=0)
    (loose,) = make_report([tmp_path / "a", tmp_path / "untested"]).numbers["studies"]
    assert loose["arms"][1]["unfinished"] == [{"seed": None, "status": "no test items"}]
    assert loose["arms"][1]["training_rewards"]["mean"] == pytest.approx(0.4, abs=0.02)


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    write_grpo_study(tmp_path, {"LoRA": 0.4})
    file = tmp_path / "LoRA" / "seed-0" / "run" / "results.json"
    content = json.loads(file.read_text())
    del content["groups"]
    file.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="is no run of afa grpo, or a damaged one: KeyError\\('groups'\\)"):
        read_study(tmp_path)
