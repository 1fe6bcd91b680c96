"""Two evaluations of the same items."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from afa_lora.evaluation.commonsense import (
    Evaluation,
    EvaluationError,
    compare,
    print_comparison,
    print_evaluation,
    read_evaluation,
)
from afa_lora.evaluation.commonsense.results import summarise

RNG = np.random.default_rng(0)
RIGHT = {"boolq": RNG.random(40) < 0.8, "piqa": RNG.random(30) < 0.7}
WRONG = {"boolq": RNG.random(40) < 0.3, "piqa": RNG.random(30) < 0.6}


def evaluation(folder: Path, right: dict[str, np.ndarray], shuffle: bool = False, **settings: Any) -> Evaluation:
    """A finished evaluation, as it lies in its folder."""
    asked = {"protocol": "paper", "data": "d", "weights": folder.name, "beams": 1, **settings}
    lines = [
        {
            "task": t,
            "index": 3 * i,
            "answer": "true",
            "given": "true" if r else None,
            "correct": bool(r),
            "seconds": 0.5,
        }
        for t, rights in right.items()
        for i, r in enumerate(rights)
    ]
    folder.mkdir()
    order = lines[::-1] if shuffle else lines
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in order))
    (folder / "settings.json").write_text(json.dumps(asked))
    (folder / "results.json").write_text(json.dumps(summarise(lines, asked)))
    return read_evaluation(folder)


def test_tests_are_of_the_same_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = evaluation(tmp_path / "a", RIGHT), evaluation(tmp_path / "b", WRONG, shuffle=True, beams=4)
    found = compare(a, b)
    for task, p_value in found.p_values.items():
        only_a = int(np.sum(RIGHT[task] & ~WRONG[task]))
        only_b = int(np.sum(~RIGHT[task] & WRONG[task]))
        assert p_value == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    difference = np.mean([RIGHT[t].mean() - WRONG[t].mean() for t in RIGHT])
    assert found.average.difference == pytest.approx(difference)
    assert found.average.interval_95[0] < difference < found.average.interval_95[1]
    assert found.different == ["beams: 1 → 4"]
    assert compare(b, a).average.difference == pytest.approx(-difference)
    print_comparison(found, Console(width=120))
    printed = capsys.readouterr().out
    assert f"{100 * difference:+.1f}" in printed
    assert "The settings differ: beams: 1 → 4." in printed
    assert f"Only A is right on {found.average.wins} items" in printed


def test_a_model_is_as_good_as_itself(tmp_path: Path) -> None:
    found = compare(evaluation(tmp_path / "a", RIGHT), evaluation(tmp_path / "b", RIGHT))
    assert set(found.p_values.values()) == {1.0}
    assert (found.average.difference, found.average.p_value) == (0.0, 1.0)
    assert found.different == []


@pytest.mark.parametrize(
    ("right", "settings", "message"),
    [
        (WRONG, {"protocol": "likelihood"}, "protocol: 'paper' and 'likelihood'"),
        ({"boolq": WRONG["boolq"]}, {}, "tasks: .*a has piqa, the other has not"),
        ({**WRONG, "winogrande": WRONG["piqa"]}, {}, "tasks: .*b has winogrande, the other has not"),
        ({**WRONG, "piqa": WRONG["piqa"][:20]}, {}, "piqa: 30 and 20 items, 20 in common"),
        (WRONG, {"data": "other"}, "data: items of the same numbers have other texts"),
    ],
)
def test_other_items_or_protocols_are_refused(
    tmp_path: Path, right: dict[str, np.ndarray], settings: dict[str, Any], message: str
) -> None:
    a, b = evaluation(tmp_path / "a", RIGHT), evaluation(tmp_path / "b", right, **settings)
    with pytest.raises(EvaluationError, match=message):
        compare(a, b)


def test_another_programs_numbers_are_refused(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", RIGHT), evaluation(tmp_path / "b", WRONG)
    results = {**b.results, "source": "lm-evaluation-harness"}
    (b.folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(EvaluationError, match="source: 'afa-lora' and 'lm-evaluation-harness'"):
        compare(a, read_evaluation(b.folder))
    (b.folder / "results.json").write_text(json.dumps({**results, "source": "afa-lora"}))
    (b.folder / "items.jsonl").unlink()
    with pytest.raises(EvaluationError, match="b gives no items"):
        compare(a, read_evaluation(b.folder))


def test_table_of_the_likelihood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluation(tmp_path / "a", RIGHT, protocol="likelihood")
    print_evaluation(found, Console(width=100))
    printed = capsys.readouterr().out
    low, high = found.results["tasks"]["boolq"]["interval_95"]
    assert f"{100 * low:.1f} % to {100 * high:.1f} %" in printed
    assert "unparsed" not in printed
    assert "70 items in 35 s (2.00 a second)" in printed
