"""Folders are read as far as they have come, and what cannot share a table is refused."""

import json
import shutil
from pathlib import Path

import pytest

from afa_lora.core.errors import AfaLoraError
from afa_lora.data.commonsense import TASKS
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import read_findings, read_study
from tests.reproduce.studies import ARMS, arm, write_evaluation, write_harness, write_json, write_run, write_study

SHARES = {"Full": 0.5, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.45}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path / "table1", SHARES, items=20)


def test_a_finished_study_has_every_evaluation_and_training(folder: Path) -> None:
    study = read_study(folder)
    assert [one.name for one in study.arms] == [one["name"] for one in ARMS]
    for one in study.arms:
        assert [run.status for run in one.runs] == ["finished"] * 2
        assert list(one.scores) == [0, 1]
        assert list(one.scores[0].by_task) == list(TASKS)
    lora, afa = study.arms[1].trainings[0], study.arms[2].trainings[0]
    assert (lora.tokens_per_second, lora.seconds, lora.peak_memory) == (800.0, 60.0, 900 * 2**20 + 100)
    assert lora.curve.window is None
    assert afa.curve.window == (1, 36)
    assert len(afa.curve.loss) == 120


def test_what_is_not_finished_is_listed_with_its_state(folder: Path) -> None:
    place = folder / "LoRA"
    (place / "seed-0" / "evaluation" / "results.json").unlink()
    shutil.rmtree(place / "seed-1" / "evaluation")
    full = folder / "Full"
    (full / "seed-0" / "run" / "results.json").unlink()
    shutil.rmtree(full / "seed-0" / "evaluation")
    shutil.rmtree(full / "seed-1")
    write_json(full / "seed-1" / "failure.json", {"time": 0, "message": "out of memory"})
    arms = read_study(folder).arms
    assert [run.status for run in arms[0].runs] == ["training not finished", "failed: out of memory"]
    assert [run.status for run in arms[1].runs] == ["evaluation not finished", "not evaluated"]
    assert arms[1].scores == {}
    assert len(arms[1].trainings) == 2


def test_an_arm_that_nobody_has_begun_is_listed(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, {"LoRA": 0.4}, items=5))
    assert [run.status for run in study.arms[2].runs] == ["not started"] * 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol": "likelihood"}, "protocol: 'paper' and 'likelihood'"),
        ({"prompt": "chat"}, "prompt: 'alpaca' and 'chat'"),
        ({"beams": 4}, "beams: 1 and 4"),
        ({"max_new_tokens": 8}, "max_new_tokens: 32 and 8"),
        ({"limit": 100, "data": "other"}, "limit: 50 and 100"),
        ({"data": "other"}, "data: 'd0d0d0d0d0d0d0d0' and 'other'"),
    ],
)
def test_evaluations_of_another_kind_are_refused(folder: Path, changed: dict[str, object], said: str) -> None:
    write_evaluation(folder / "LoRA" / "seed-1" / "evaluation", 0.4, items=20, **changed)
    with pytest.raises(StudyError, match="cannot share a table") as refused:
        read_study(folder)
    assert said in str(refused.value)
    assert str(folder / "LoRA" / "seed-1" / "evaluation") in str(refused.value)


def test_other_models_on_the_same_items_share_a_table_however_these_were_asked_for(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", 0.4, items=5)
    write_evaluation(tmp_path / "b", 0.5, items=5, model="other", adapter="runs/x", limit=5)
    (study,) = read_findings([tmp_path / "a", tmp_path / "b"]).studies
    assert len(study.scores) == 2


def test_runs_and_evaluations_on_their_own_share_one_table(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "base", 0.3, items=5)
    write_run(tmp_path / "trained", "afa-lora")
    write_run(tmp_path / "both" / "run", "lora")
    write_evaluation(tmp_path / "both" / "evaluation", 0.4, items=5)
    write_run(tmp_path / "inside", "lora")
    write_evaluation(tmp_path / "inside" / "evaluation", 0.4, items=5)
    folders = [tmp_path / name for name in ("base", "trained", "both", "inside")]
    (study,) = read_findings([*folders, tmp_path / "base"]).studies
    assert study.artifact is None
    assert [one.name for one in study.arms] == ["base", "trained", "both", "inside"]
    assert [bool(one.scores) for one in study.arms] == [True, False, True, True]
    assert [len(one.trainings) for one in study.arms] == [0, 1, 1, 1]


def test_rows_of_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_evaluation(tmp_path / name / "LoRA" / "evaluation", 0.4, items=5)
    folders = [tmp_path / name / "LoRA" / "evaluation" for name in ("x", "y")]
    (study,) = read_findings(folders).studies
    assert [one.name for one in study.arms] == ["x/LoRA", "y/LoRA"]


def test_several_studies_are_several_tables_whatever_their_protocols(tmp_path: Path) -> None:
    write_study(tmp_path / "a", {"LoRA": 0.4}, items=5)
    write_study(tmp_path / "b", {}, items=5, title="Another")
    write_evaluation(tmp_path / "c", 0.4, items=5, protocol="likelihood")
    found = read_findings([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert [study.title for study in found.studies] == ["Commonsense reasoning", "Another", "Runs"]
    assert found.harness == {}


def test_numbers_of_the_harness_are_kept_apart(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "ours", 0.4, items=5)
    write_harness(tmp_path / "theirs", 0.5)
    found = read_findings([tmp_path / "ours", tmp_path / "theirs"])
    assert [one.name for study in found.studies for one in study.arms] == ["ours"]
    assert list(found.harness) == ["theirs"]


def test_the_harness_with_other_prompts_is_refused(tmp_path: Path) -> None:
    write_harness(tmp_path / "a", 0.5)
    write_harness(tmp_path / "b", 0.5, items_hash="other")
    with pytest.raises(StudyError, match="other items or prompts of arc_easy"):
        read_findings([tmp_path / "a", tmp_path / "b"])


def test_a_folder_that_is_not_there_gets_the_closest_name(folder: Path) -> None:
    with pytest.raises(StudyError, match="Did you mean 'table1'"):
        read_findings([folder.parent / "tabel1"])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(StudyError, match=r"holds no study .* no run .* no evaluation"):
        read_findings([tmp_path])
    with pytest.raises(StudyError, match=r"study\.json does not exist"):
        read_study(tmp_path)


def test_arms_that_one_seed_has_trained_on_other_data_are_refused(folder: Path) -> None:
    write_run(folder / "LoRA" / "seed-1" / "run", "lora", data="other")
    with pytest.raises(StudyError, match="trained on other data") as refused:
        read_study(folder)
    message = str(refused.value)
    assert "train_fingerprint: 'aaaaaaaaaaaaaaaa' and 'other'" in message
    assert "train_items" not in message
    assert str(folder / "Full" / "seed-1" / "run") in message
    assert str(folder / "LoRA" / "seed-1" / "run") in message


def test_each_seed_may_have_its_own_training_data_and_so_may_runs_on_their_own(folder: Path, tmp_path: Path) -> None:
    for one in ARMS:
        write_run(folder / one["slug"] / "seed-1" / "run", one["method"], data="of seed 1")
    assert len(read_study(folder).arms) == 3
    write_run(tmp_path / "alone", "lora", data="of its own")
    assert len(read_findings([tmp_path / "alone", folder / "LoRA" / "seed-0"]).studies[0].arms) == 2


def test_a_study_with_a_damaged_evaluation_is_refused(folder: Path) -> None:
    """Cut in all arms, the lines would give other means without a word."""
    for one in ARMS:
        for seed in (0, 1):
            items = folder / one["slug"] / f"seed-{seed}" / "evaluation" / "items.jsonl"
            items.write_text("".join(items.read_text().splitlines(keepends=True)[:100]))
    with pytest.raises(AfaLoraError, match=r"Full/seed-0/evaluation/items\.jsonl"):
        read_study(folder)


@pytest.mark.parametrize("file", ["results.json", "provenance.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(folder: Path, file: str) -> None:
    path = folder / "LoRA" / "seed-0" / "run" / file
    path.write_text('{"step": 1\n')
    with pytest.raises(StudyError, match="damaged") as refused:
        read_study(folder)
    assert str(path) in str(refused.value)


def test_a_run_without_its_numbers_is_named(folder: Path) -> None:
    path = folder / "LoRA" / "seed-0" / "run" / "results.json"
    results = json.loads(path.read_text())
    del results["training_seconds"]
    write_json(path, results)
    with pytest.raises(StudyError, match="training_seconds"):
        read_study(folder)


def test_mistakes_in_study_json_come_in_one_message(folder: Path) -> None:
    study = json.loads((folder / "study.json").read_text())
    study["seeds"], study["arms"][0]["family"] = "0", "lroa"
    write_json(folder / "study.json", study)
    with pytest.raises(AfaLoraError, match="2 mistakes") as refused:
        read_study(folder)
    assert "seeds" in str(refused.value)
    assert "arms[0].family = 'lroa'" in str(refused.value)
    write_json(folder / "study.json", [])
    with pytest.raises(StudyError, match="no JSON object"):
        read_findings([folder])


@pytest.mark.parametrize("slug", ["../elsewhere", "/etc", "a/b", "..", ""])
def test_an_arm_cannot_point_outside_of_the_study(tmp_path: Path, slug: str) -> None:
    write_study(tmp_path, {}, arms=[arm("LoRA", "lora", slug=slug)])
    with pytest.raises(StudyError, match="no name of a folder inside"):
        read_study(tmp_path)
