"""A study of EAGLE drafts: the arms of Table 3, what they share, the report's numbers, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from afa_lora.core.errors import InvalidSettingError
from afa_lora.eagle.features import FeatureError
from afa_lora.evaluation.statistics import bootstrap_interval
from afa_lora.reproduce.eagle_plan import plan_drafts, print_drafts
from afa_lora.reproduce.jobs import Experiment, load_experiment
from afa_lora.reproduce.report import make_report
from afa_lora.reproduce.run import run_experiment
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import read_study
from afa_lora.settings import RecipeError, dump_yaml
from tests.tiny_study import save_tiny_drafts_data

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "recipes"
AFA = "EAGLE + AFA SiLU"
SHAPES = ("chain:2", "tree")
COLUMNS = ("red chain", "blue chain", "red tree", "blue tree")

Load = Callable[..., Experiment]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations and two sets of three questions each."""
    return save_tiny_drafts_data(tmp_path / "data")


@pytest.fixture
def settings(chat_model: Path) -> dict[str, Any]:
    """A tiny suite, to be changed."""
    return {
        "title": "Tiny drafts",
        "paper": "Table 0",
        "workflow": "eagle",
        "figure": "table0.png",
        "columns": [*COLUMNS],
        "arms": {
            "EAGLE": {"method": "eagle", "paper": [1.0, 2.0, 3.0, 4.0]},
            "EAGLE + LoRA": {"method": "eagle+lora"},
            AFA: {"method": "eagle+afa-lora", "anneal": {"activation": "silu"}},
        },
        "scales": {
            "tiny": {
                "model": str(chat_model),
                "data": {"conversations": ["nowhere"], "test_items": 2},
                "features": {"dtype": "float32"},
                "load": {"dtype": "float32"},
                "adapter": {"r": 4, "lora_alpha": 4},
                "train": {
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 5,
                    "learning_rate": 3e-3,
                    "logging_steps": 1,
                    "save_strategy": "no",
                },
                "evaluate": {"sets": ["red", "blue"], "max_new_tokens": 8, "shapes": [*SHAPES]},
            }
        },
    }


@pytest.fixture
def load(settings: dict[str, Any], data: Path, tmp_path: Path) -> Load:
    """Load the experiment with other arms, seeds, overrides or folder."""

    def load(**options: Any) -> Experiment:
        path = tmp_path / "table0.yaml"
        path.write_text(dump_yaml(settings))
        return load_experiment(path, "tiny", **{"folder": tmp_path / "out", "data": data, **options})

    return load


def said(experiment: Experiment) -> str:
    """Run; what was printed."""
    console = Console(record=True, width=200)
    assert run_experiment(experiment, console) == {}
    return console.export_text()


@pytest.mark.parametrize(("suite", "arms"), [("table3", 5), ("figure3", 2)])
@pytest.mark.parametrize("scale", ["paper", "small", "tiny", "quickstart"])
def test_the_shipped_suites_have_the_papers_arms(suite: str, scale: str, arms: int) -> None:
    experiment = load_experiment(RECIPES / "reproduce" / f"{suite}.yaml", scale, Path("out"))
    assert len(experiment.suite.arm_names) == arms
    for job in experiment.jobs:
        recipe = job.recipe
        assert recipe.features.folder == Path("out/features")  # type: ignore[attr-defined]
        assert recipe.merge
        if recipe.anneals:
            assert (recipe.anneal.schedule, recipe.anneal.anneal_start, recipe.anneal.anneal_end) == ("step", 0.0, 0.1)
    assert {recipe.method for recipe in experiment.arms.values()} <= {"eagle", "eagle+lora", "eagle+afa-lora"}


def test_a_study_is_trained_measured_reported_and_skipped_when_done(load: Load) -> None:
    experiment = load()
    said(experiment)
    numbers = json.loads((experiment.folder / "results.json").read_text())["studies"][0]
    start, *arms = numbers["arms"]
    assert (start["name"], start["method"], start["comparison"]) == ("Untrained draft", None, None)
    assert [arm["name"] for arm in arms] == [job.arm for job in experiment.jobs]
    assert all(task["items"] in (2, 3) for task in numbers["tasks"])  # an answer of one token takes no cycle
    means: dict[str, np.ndarray] = {}
    for job, arm in zip(experiment.jobs, arms, strict=True):
        cycles = json.loads((job.evaluation / "results.json").read_text())["cycles"]
        by_shape = {
            (name, shape): np.array(
                [np.mean(one["accepted"]) for _, one in sorted(cycles[name][shape].items()) if one["accepted"]]
            )
            for name in ("red", "blue")
            for shape in SHAPES
        }
        for (name, shape), values in by_shape.items():
            column = arm["accepted"][f"{name} {shape}"]
            assert column["mean"] == pytest.approx(values.mean())
            assert column["interval_95"] == pytest.approx(bootstrap_interval(values))
            assert column["pooled_with_bonus"] > column["pooled"]
            if job.arm != "EAGLE + LoRA":
                assert column["comparison"]["baseline"] == "EAGLE + LoRA"
                other = arms[1]["accepted"][f"{name} {shape}"]["mean"]
                assert column["comparison"]["difference"] == pytest.approx(column["mean"] - other)
        prompts = [(by_shape[name, SHAPES[0]] + by_shape[name, SHAPES[1]]) / 2 for name in ("red", "blue")]
        means[job.arm] = np.array([values.mean() for values in prompts])
        assert arm["accuracy"]["average"]["mean"] == pytest.approx(means[job.arm].mean())
        assert arm["training"]["tokens_per_second"] > 0
        assert job.run.draft.is_dir()
    gain = means[AFA].mean() - means["EAGLE + LoRA"].mean()
    assert arms[2]["comparison"]["baseline"] == "EAGLE + LoRA"
    assert arms[2]["comparison"]["unit"] == "tokens"
    assert arms[2]["comparison"]["difference"] == pytest.approx(gain)
    assert arms[0]["comparison"]["baseline"] == "EAGLE + LoRA"
    assert [arm["gap_closed"] for arm in arms] == [None] * 3
    assert (experiment.folder / "table0.png").is_file()
    page, table = ((experiment.folder / name).read_text() for name in ("report.html", "table.md"))
    assert "(1.0000)" in table  # the paper's, in the column of the same set and kind of shape
    assert "(3.0000)" in table
    assert "Difference, tokens" in page
    assert any("untrained" in sentence for sentence in numbers["outcome"])

    again = said(load())
    assert again.count("done already") == 3
    assert "steps" not in again  # of a progress bar


def test_an_arm_can_be_added_later_on_the_same_features_and_answers(load: Load) -> None:
    first = load(arms=["eagle+lora"])
    said(first)
    features = {file: file.stat().st_mtime_ns for file in (first.folder / "features").glob("*.safetensors")}
    answers = {file: file.stat().st_mtime_ns for file in (first.folder / "answers").rglob("*.safetensors")}
    assert features
    assert answers
    said(load())
    assert {file: file.stat().st_mtime_ns for file in features} == features
    assert {file: file.stat().st_mtime_ns for file in answers} == answers
    assert len(read_study(first.folder).arms) == 4


def test_other_conversations_are_refused(load: Load, data: Path) -> None:
    said(load(arms=["eagle"]))
    part = data / "conversations" / "sharegpt_tiny" / "part.jsonl"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(FeatureError, match="data"):
        run_experiment(load(), Console(quiet=True))


def test_other_questions_cannot_share_a_table(load: Load, data: Path) -> None:
    said(load(arms=["eagle"]))
    file = data / "eagle" / "red" / "question.jsonl"
    file.write_text(file.read_text().replace("red 2?", "red two?"))
    with pytest.raises(StudyError, match="test items are not those of"):
        run_experiment(load(), Console(quiet=True))


def test_questions_are_needed(load: Load, settings: dict[str, Any], data: Path) -> None:
    settings["scales"]["tiny"]["data"]["conversations"] = [str(data / "conversations")]
    with pytest.raises(InvalidSettingError, match=r"--data is missing.*question\.jsonl"):
        run_experiment(load(data=None), Console(quiet=True))


def test_a_run_of_its_own_is_listed(load: Load) -> None:
    experiment = load(arms=["eagle"])
    said(experiment)
    (study,) = make_report([experiment.jobs[0].run.path]).numbers["studies"]
    assert study["title"] == "EAGLE drafts"
    assert study["arms"][0]["training"]["final_loss"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"LoRA": {"method": "lora"}}}, "method=lora is no method of afa eagle"),
        ({"scales": {"tiny": {"features": {"folder": "here"}}}}, "folder must be left out"),
    ],
)
def test_a_wrong_suite_is_refused(load: Load, settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    if "arms" in change:
        settings["arms"] = change["arms"]
    else:
        settings["scales"]["tiny"]["features"] = change["scales"]["tiny"]["features"]
    with pytest.raises(RecipeError, match=message):
        load()


def test_the_plan_of_the_papers_scale_says_disk_and_hours() -> None:
    experiment = load_experiment(RECIPES / "reproduce" / "table3.yaml", "paper", Path("out"))
    plan = plan_drafts(experiment, RECIPES / "shapes", lambda text: None)
    assert plan.conversations.tokens == 68_000 * 2048
    assert plan.disk == 68_000 * 2048 * 4096 * 2
    assert plan.costs["eagle"].steps == 50 * 68_000 // 16
    layer = 2 * 4096**2 + (2 * 4096**2 + 2 * 4096 * 1024) + 3 * 4096 * 14336 + 4096  # fc, attention, MLP, norm
    assert plan.costs["eagle"].parameters == layer
    assert plan.costs["eagle+lora"].parameters > layer
    # Forward and twice as much backward, but for fc's input; the output layer: twice forward, once backward.
    products = 3 * 2 * (layer - 4096) - 2 * 2 * 4096**2 + 3 * 2 * 4096 * 128_256
    assert plan.costs["eagle"].flops / (50 * plan.conversations.tokens) == pytest.approx(products, rel=0.01)
    target = 32 * 2 * (layer - 4096 - 2 * 4096**2)
    assert plan.feature_flops / plan.conversations.tokens == pytest.approx(target, rel=0.01)
    console = Console(record=True, width=120)
    print_drafts(plan, console)
    text = console.export_text()
    assert "1,062.5 GiB" in text
    assert "hours, H100 SXM" in text


def test_the_plan_of_a_tiny_scale_measures_the_conversations(load: Load) -> None:
    plan = plan_drafts(load(), RECIPES / "shapes", lambda text: None)
    assert plan.conversations.measured
    assert plan.conversations.count == 10
    assert plan.costs["eagle"].steps == 4
