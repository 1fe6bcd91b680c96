"""What a report says follows from the files: numbers against hand computation, sentences against the numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.statistics import bootstrap_average_interval, bootstrap_interval
from afa_lora.reproduce.outcome import outcome
from afa_lora.reproduce.report import make_report
from tests.reproduce.studies import ARMS, arm, write_evaluation, write_harness, write_run, write_study

SHARES = {"Full": 0.6, "LoRA": 0.4, "AFA-LoRA A-σ-B": 0.5}


def numbers_of(folder: Path) -> dict[str, Any]:
    (study,) = make_report([folder]).numbers["studies"]
    return study


def answers(folder: Path) -> list[np.ndarray]:
    """Right and wrong by task, read without the library."""
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: line["index"])
    return [np.array([line["correct"] for line in lines if line["task"] == task]) for task in TASKS]


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), SHARES, items=40)


def test_with_two_seeds_the_interval_is_students(two_seeds: Path) -> None:
    lora = numbers_of(two_seeds)["arms"][1]
    seeds = [answers(two_seeds / "LoRA" / f"seed-{seed}" / "evaluation") for seed in (0, 1)]
    for number, task in enumerate(TASKS):
        shares = [seed[number].mean() for seed in seeds]
        assert lora["accuracy"][task]["per_seed"] == pytest.approx(shares)
    averages = [float(np.mean([task.mean() for task in seed])) for seed in seeds]
    average = lora["accuracy"]["average"]
    assert average["mean"] == pytest.approx(np.mean(averages))
    theirs = stats.t.interval(0.95, 1, loc=np.mean(averages), scale=stats.sem(averages))
    assert average["interval_95"] == pytest.approx(theirs)
    assert average["over"] == "seeds"
    means = [np.mean(pair, axis=0) for pair in zip(*seeds, strict=True)]
    assert average["items_interval_95"] == bootstrap_average_interval(means)


def test_with_one_seed_the_interval_is_a_bootstrap_of_the_items(tmp_path: Path) -> None:
    write_study(tmp_path, SHARES, seeds=[3], items=40)
    study = numbers_of(tmp_path)
    lora, right = study["arms"][1], answers(tmp_path / "LoRA" / "seed-3" / "evaluation")
    assert lora["accuracy"]["boolq"]["interval_95"] == bootstrap_interval(right[list(TASKS).index("boolq")])
    assert lora["accuracy"]["average"]["interval_95"] == bootstrap_average_interval(right)
    assert lora["accuracy"]["average"]["over"] == "items"
    assert "There is one seed" in " ".join(study["outcome"])


def test_comparison_and_gap_closed_are_those_of_the_files(two_seeds: Path) -> None:
    full, lora, afa = numbers_of(two_seeds)["arms"]
    means = {one["name"]: one["accuracy"]["average"]["mean"] for one in (full, lora, afa)}
    gain, gap = (means[name] - means["LoRA"] for name in ("AFA-LoRA A-σ-B", "Full"))
    assert afa["comparison"]["difference"] == pytest.approx(gain)
    assert afa["comparison"]["per_seed"] == pytest.approx(
        np.subtract(*(one["accuracy"]["average"]["per_seed"] for one in (afa, lora)))
    )
    assert afa["comparison"]["wins"] + afa["comparison"]["losses"] + afa["comparison"]["ties"] == 8 * 40
    assert afa["gap_closed"]["value"] == pytest.approx(gain / gap)
    assert afa["paper_gap_closed"] == pytest.approx((85.95 - 85.57) / (87.07 - 85.57))
    assert lora["comparison"] is None
    assert lora["gap_closed"] is None
    assert full["comparison"]["baseline"] == "LoRA"
    assert full["gap_closed"] is None


def test_trainings_are_averaged_over_the_seeds(two_seeds: Path) -> None:
    training = numbers_of(two_seeds)["arms"][2]["training"]
    assert (training["seeds"], training["tokens_per_second"], training["seconds"]) == (2, 800.0, 60.0)
    assert training["peak_memory_bytes"] == 900 * 2**20 + 201
    assert training["annealing_window"] == (1, 36)
    last = []
    for seed in (0, 1):
        lines = (two_seeds / ARMS[2]["slug"] / f"seed-{seed}" / "run" / "metrics.jsonl").read_text().splitlines()
        last += [json.loads(line)["loss"] for line in lines[-12:]]
    assert training["final_loss"] == pytest.approx(np.mean(last))


def test_unparsed_answers_are_a_share_of_all_and_unknown_for_likelihoods(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", 0.4, items=40)
    study = numbers_of(tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "items.jsonl").read_text().splitlines()]
    assert 0 < study["arms"][0]["unparsed"] == np.mean([line["given"] is None for line in lines])
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    (tmp_path / "a" / "results.json").write_text(json.dumps({**results, "unparsed": None}))
    assert numbers_of(tmp_path / "a")["arms"][0]["unparsed"] is None


def test_p_values_are_adjusted_for_the_number_of_arms(tmp_path: Path) -> None:
    arms = [*ARMS, arm("AFA-LoRA A-B-σ", "afa-lora"), arm("AFA-LoRA σ-A-B", "afa-lora")]
    shares = {**SHARES, "AFA-LoRA A-σ-B": 0.41, "AFA-LoRA A-B-σ": 0.42, "AFA-LoRA σ-A-B": 0.43}
    write_study(tmp_path, shares, arms=arms, items=40)
    afa = [one["comparison"] for one in numbers_of(tmp_path)["arms"][2:]]
    smallest = min(afa, key=lambda comparison: comparison["p_value"])
    assert smallest["p_adjusted"] == pytest.approx(min(1.0, 3 * smallest["p_value"]))
    assert all(one["p_adjusted"] >= one["p_value"] for one in afa)


def test_only_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    write_study(tmp_path, SHARES, seeds=(0, 1, 2), items=20)
    (tmp_path / "LoRA" / "seed-1" / "evaluation" / "results.json").unlink()
    study = numbers_of(tmp_path)
    lora, afa = study["arms"][1:]
    assert lora["seeds"] == [0, 2]
    assert lora["unfinished"] == [{"seed": 1, "status": "evaluation not finished"}]
    assert afa["seeds"] == [0, 1, 2]
    assert afa["comparison"]["seeds"] == afa["gap_closed"]["seeds"] == [0, 2]
    assert afa["comparison"]["missing_seeds"] == afa["gap_closed"]["missing_seeds"] == [1]
    assert afa["comparison"]["difference"] == pytest.approx(
        np.mean([afa["accuracy"]["average"]["per_seed"][i] for i in (0, 2)]) - lora["accuracy"]["average"]["mean"]
    )
    assert "Not finished: 1 of 3 arms (LoRA: 2 of 3 seeds done)." in study["outcome"]


def test_one_seed_of_several_does_not_make_an_arm_better(tmp_path: Path) -> None:
    """LoRA has two seeds, AFA the first: its average less LoRA's is not the difference, which is over one seed."""
    write_study(tmp_path, SHARES, items=50)
    (tmp_path / ARMS[2]["slug"] / "seed-1" / "evaluation" / "results.json").unlink()
    report = make_report([tmp_path])
    (study,) = report.numbers["studies"]
    afa = study["arms"][2]
    assert (afa["comparison"]["seeds"], afa["comparison"]["missing_seeds"]) == ([0], [1])
    assert afa["comparison"]["p_adjusted"] < 0.001
    text = " ".join(study["outcome"])
    assert "AFA-LoRA A-σ-B is better" not in text
    assert "AFA-LoRA A-σ-B does not differ clearly from LoRA" in text
    assert f"{100 * afa['comparison']['difference']:+.2f} points on seed 0 alone" in text
    assert "The averages are over all finished seeds of an arm, the differences over those of both" in text
    for form in (report.page, report.markdown):
        assert "on seed 0 alone" in form
    row = next(line for line in report.markdown.splitlines() if line.startswith("| AFA"))
    assert "seed 1: evaluation not finished" in row


def test_averages_over_the_compared_seeds_need_no_remark(two_seeds: Path) -> None:
    report = make_report([two_seeds])
    assert "alone" not in report.markdown
    assert "The averages are over" not in report.markdown


def test_dora_is_its_own_family(tmp_path: Path) -> None:
    arms = [*ARMS, arm("DoRA", "dora"), arm("AFA-DoRA A-B-σ", "afa-dora")]
    write_study(tmp_path, {**SHARES, "DoRA": 0.45, "AFA-DoRA A-B-σ": 0.5}, arms=arms, items=40)
    by_name = {one["name"]: one for one in numbers_of(tmp_path)["arms"]}
    means = {name: one["accuracy"]["average"]["mean"] for name, one in by_name.items()}
    gap = by_name["AFA-DoRA A-B-σ"]["gap_closed"]
    expected = (means["AFA-DoRA A-B-σ"] - means["DoRA"]) / (means["Full"] - means["DoRA"])
    assert gap["value"] == pytest.approx(expected)
    assert by_name["AFA-LoRA A-σ-B"]["comparison"]["baseline"] == "LoRA"


def test_runs_on_their_own_have_no_gap_closed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lora")
    write_evaluation(tmp_path / "b", 0.4, items=20)
    report = make_report([tmp_path / "a", tmp_path / "b"])
    (study,) = report.numbers["studies"]
    assert [one["gap_closed"] for one in study["arms"]] == [None, None]
    assert [bool(one["training"]) for one in study["arms"]] == [True, False]
    assert study["outcome"] == ["Runs on their own: they are listed, not compared."]
    assert study["arms"][0]["unfinished"] == [{"seed": None, "status": "not evaluated"}]


def test_a_study_of_which_nothing_is_there_yet_says_so(tmp_path: Path) -> None:
    report = make_report([write_study(tmp_path, {})])
    assert report.numbers["studies"][0]["outcome"][0].startswith("Nothing is evaluated yet")
    assert "not started" in report.page
    assert "not started" in report.markdown


def test_the_harness_stands_under_its_own_heading(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "ours", 0.4, items=20)
    write_harness(tmp_path / "theirs", 0.512)
    report = make_report([tmp_path / "ours", tmp_path / "theirs"])
    ours, theirs = report.markdown.split("## lm-evaluation-harness")
    assert "theirs" not in ours
    assert "| arc_easy | acc | none | theirs | 0.5120 | 0.0100 | 200 | 0 | 1.0 |" in theirs
    ours, theirs = report.page.split("<h1>lm-evaluation-harness</h1>")
    assert "0.5120" in theirs
    assert "0.5120" not in ours


def test_the_markdown_table_shows_what_the_json_holds(two_seeds: Path) -> None:
    report = make_report([two_seeds])
    study = json.loads(report.json)["studies"][0]
    rows = [line for line in report.markdown.splitlines() if line.startswith("| ")]
    assert [len(row.split(" | ")) for row in rows] == [13] * 4
    for one, row in zip(study["arms"], rows[1:], strict=True):
        cells = row.strip("| ").split(" | ")
        assert cells[0] == one["name"]
        for task, cell in zip(TASKS, cells[1:9], strict=True):
            assert cell == f"{100 * one['accuracy'][task]['mean']:.1f} ({one['paper'][task]:.2f})"
        low, high = one["accuracy"]["average"]["interval_95"]
        assert cells[10] == f"± {50 * (high - low):.2f}"
    assert rows[0].split(" | ")[1:3] == ["ARC-C", "ARC-E"]


def test_the_report_of_a_study_is_the_same_every_time(two_seeds: Path) -> None:
    assert make_report([two_seeds]) == make_report([two_seeds])


def test_figures_are_drawn_for_each_family_and_beta(tmp_path: Path) -> None:
    arms = [*ARMS, arm("DoRA", "dora"), arm("AFA-DoRA A-B-σ", "afa-dora")]
    write_study(tmp_path, {**SHARES, "DoRA": 0.45, "AFA-DoRA A-B-σ": 0.5}, arms=arms, items=5, seeds=[0])
    page = make_report([tmp_path]).page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [caption.split(",")[0] for caption in captions] == ["LoRA: training loss", "DoRA: training loss", "β"]
    assert page.count('<ul class="legend">') == 3
    assert "all 2 annealed arms" in page.replace("<span>", "")


def compared(
    name: str,
    difference: float,
    p: float,
    seeds: tuple[float, float] | None,
    missing: Sequence[int] = (),
    **changes: Any,
) -> dict[str, Any]:
    """An arm as far as the outcome looks at it."""
    done = [seed for seed in (0, 1, 2) if seed not in missing]
    comparison = {
        "baseline": "LoRA",
        "seeds": done,
        "missing_seeds": list(missing),
        "difference": difference,
        "interval_95": (difference - 0.01, difference + 0.01),
        "p_value": p,
        "p_adjusted": p,
        "seed_interval_95": seeds,
    }
    one = {"name": name, "method": "afa-lora", "family": "lora", "accuracy": {"average": {"mean": 0.5}}}
    return {**one, "seeds": done, "comparison": comparison, "unfinished": [], **changes}


BASE = compared("LoRA", 0.0, 1.0, None, method="lora", comparison=None)


def said(*arms: Mapping[str, Any]) -> str:
    return " ".join(outcome({"artifact": "table1", "seeds": [0, 1, 2], "arms": [BASE, *arms]}))


def test_chance_is_not_called_a_difference() -> None:
    text = said(compared("X", 0.012, 0.3, None), compared("Y", -0.02, 0.06, (-0.03, -0.01)))
    assert text == (
        "None of the 2 AFA-LoRA arms differs clearly from LoRA: the largest difference is that of Y, −2.00 points "
        "(95 % interval over items −3.00 to −1.00, over 3 seeds −3.00 to −1.00, p = 0.060)."
    )


@pytest.mark.parametrize(("difference", "word"), [(0.02, "better"), (-0.02, "worse")])
def test_a_clear_difference_has_its_direction(difference: float, word: str) -> None:
    seeds = (difference - 0.005, difference + 0.005)
    assert f"X is {word} than LoRA: " in said(compared("X", difference, 0.001, seeds))
    assert f"1 of 2 AFA-LoRA arms is {word} than LoRA: X, " in said(
        compared("X", difference, 0.001, seeds), compared("Y", 0.0, 1.0, seeds)
    )
    both = said(compared("X", difference, 0.001, seeds), compared("Y", difference / 2, 0.001, seeds))
    assert re.search(rf"2 of 2 AFA-LoRA arms are {word} than LoRA: X \(.2\.00 points\), Y \(.1\.00 points\)\.", both)


def test_a_difference_that_the_seeds_do_not_bear_out_is_not_called_clear() -> None:
    text = said(compared("X", 0.02, 0.001, (-0.01, 0.05)))
    assert "X does not differ clearly from LoRA" in text
    assert "On these test items X (+2.00 points) does differ from LoRA, but the interval over the seeds holds 0" in text


def test_what_is_compared_on_fewer_seeds_than_planned_says_on_which() -> None:
    text = said(compared("X", 0.02, 0.001, (0.01, 0.03), missing=[2]))
    assert "X is better than LoRA: +2.00 points on seeds 0, 1 alone (95 % interval" in text
    text = said(compared("X", 0.02, 0.001, None, missing=[1, 2]))
    assert "X does not differ clearly from LoRA: +2.00 points on seed 0 alone (95 % interval" in text
    assert "X (+2.00 points on seed 0 alone) does differ from LoRA, but one seed" in text
    assert "the interval over the seeds holds 0" not in text
    text = said(compared("X", 0.02, 0.001, None, missing=[1, 2]), compared("Y", 0.02, 0.001, (0.01, 0.03)))
    assert "1 of 2 AFA-LoRA arms is better than LoRA: Y" in text


def test_full_fine_tuning_is_judged_by_the_same_rule() -> None:
    full = {"method": "full", "family": "full"}
    assert "Full is better than LoRA: +3.00" in said(compared("Full", 0.03, 0.001, (0.01, 0.05), **full))
    assert "Full does not differ clearly" in said(compared("Full", 0.03, 0.2, None, **full))
    assert "Full (+3.00 points) does differ" in said(compared("Full", 0.03, 0.001, (-0.01, 0.05), **full))
    assert "Full (+3.00 points on seed 2 alone)" in said(compared("Full", 0.03, 0.001, None, missing=[0, 1], **full))


def test_missing_baselines_and_arms_are_said() -> None:
    assert "LoRA: no AFA arm is finished" in said()
    alone = outcome({"artifact": "t", "seeds": [0, 1], "arms": [compared("X", 0.0, 1.0, None, comparison=None)]})
    assert alone == ["LoRA: no baseline is finished, so there is nothing to compare."]
