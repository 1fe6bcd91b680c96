"""A study of GRPO: the table, the same prompts for all arms, the report's numbers, resuming, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import TrainerCallback

from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.placement import PLACEMENTS
from afa_lora.evaluation.statistics import bootstrap_interval, gap_closed
from afa_lora.grpo import run as grpo_run
from afa_lora.reproduce.grpo_plan import plan_trainings, print_trainings
from afa_lora.reproduce.jobs import Experiment, Job, load_experiment
from afa_lora.reproduce.report import make_report
from afa_lora.reproduce.run import run_experiment
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import read_study
from afa_lora.reproduce.verl import print_commands, verl_commands
from afa_lora.settings import RecipeError, dump_yaml
from afa_lora.tuning.failures import RunStopped
from tests.tiny_study import save_tiny_prompts, tiny_grpo_suite

FILE = Path(__file__).parents[2] / "recipes" / "reproduce" / "table2.yaml"
AFA = "AFA-LoRA A-σ-B"
# The "Val Gain" rows of the paper's Table 2, in the order of its columns.
GAINS = {
    "3B": (6.2, 133.6, 13.3, 73.5, 60.2, 107.1, 86.7),
    "7B": (137.7, 24.6, 149.2, 75.4, 111.5, 75.4, 75.4),
    "14B": (76.5, 138.8, 69.4, 61.2, 130.6, 84.7, 37.8),
    "32B": (51.1, 51.1, 66.7, 51.1, 0.0, 135.6, 100.0),
}

Load = Callable[..., Experiment]


@pytest.fixture
def settings(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tiny suite, to be changed; the working folder has its reward function."""
    monkeypatch.chdir(save_tiny_prompts(tmp_path))
    return tiny_grpo_suite(chat_model, tmp_path)


@pytest.fixture
def load(settings: dict[str, Any], tmp_path: Path) -> Load:
    """Load the experiment with other arms, seeds, overrides or folder."""

    def load(**options: Any) -> Experiment:
        path = tmp_path / "table0.yaml"
        path.write_text(dump_yaml(settings))
        return load_experiment(path, "tiny", **{"folder": tmp_path / "out", **options})

    return load


def said(experiment: Experiment) -> tuple[str, dict[str, str]]:
    """Run; what was printed, and what failed."""
    console = Console(record=True, width=200)
    failures = run_experiment(experiment, console)
    return console.export_text(), failures


def results(job: Job) -> dict[str, Any]:
    """What a run says of itself."""
    content: dict[str, Any] = json.loads(job.run.results.read_text())
    return content


@pytest.mark.parametrize("scale", ["small", "tiny"])
def test_table_2_has_its_9_arms(scale: str) -> None:
    names = [arm.name for arm in load_experiment(FILE, scale, Path("out")).describe().arms]
    experiment = load_experiment(
        FILE, scale, Path("out"), arms=["full", "lora", *(f"AFA-LoRA {p}" for p in PLACEMENTS)]
    )
    arms = experiment.arms
    assert {*names} <= {*arms}
    assert [recipe.method for recipe in arms.values()] == ["full", "lora", *["afa-lora"] * 7]
    annealed = [recipe.anneal for recipe in arms.values() if recipe.anneals]
    assert [anneal.placement for anneal in annealed] == [*PLACEMENTS]
    assert {(a.activation, a.schedule, a.anneal_start, a.anneal_end) for a in annealed} == {
        ("relu", "linear", 0.0, 0.3)
    }
    assert experiment.deviations
    for job in experiment.jobs:
        assert job.recipe.train["seed"] == job.seed
        assert not job.recipe.merge
        assert not job.recipe.evaluate.before
        assert not job.recipe.anneals or job.arm.endswith(job.recipe.anneal.placement)


def test_the_papers_rewards_give_the_gains_that_it_prints() -> None:
    """A reward in a wrong place would give another gain; the paper rounds to 0.1 %."""
    arms = {arm.name: arm.paper for arm in load_experiment(FILE, "tiny", Path("out")).describe().arms}
    assert len(arms) == 9
    for size, printed in GAINS.items():
        column = f"{size} validation"
        lora, full = arms["LoRA"][column], arms["Full fine-tuning"][column]
        gains = [100 * (arms[f"AFA-LoRA {p}"][column] - lora) / (full - lora) for p in PLACEMENTS]
        assert gains == pytest.approx(printed, abs=0.0501)
        train = [paper[f"{size} train"] for paper in arms.values()]
        assert min(train[2:]) > train[1]  # every placement is above LoRA there, as the paper says
        assert max(train) == train[0]


@pytest.fixture
def study(load: Load) -> Experiment:
    """A finished study of three arms."""
    experiment = load(arms=["full", "lora", AFA])
    assert said(experiment)[1] == {}
    return experiment


def test_a_study_is_trained_reported_and_skipped_when_done(study: Experiment, load: Load) -> None:
    for job in study.jobs:
        assert job.done
        assert not job.evaluation.exists()
        assert (job.run.path / "model").exists() == (job.recipe.method == "full")
    numbers = json.loads((study.folder / "results.json").read_text())["studies"][0]
    assert numbers["workflow"] == "grpo"
    assert numbers["tasks"] == [{"name": "validation", "title": "validation", "items": 6}]
    full, lora, afa = names = [job.arm for job in study.jobs]
    rewards = {job.arm: np.array(results(job)["after"]["rewards"]) for job in study.jobs}
    sampled = {job.arm: np.array([reward for _, reward in results(job)["reward"]]) for job in study.jobs}
    for arm, job in zip(numbers["arms"], names, strict=True):
        reward, training = arm["accuracy"]["average"], arm["training_rewards"]
        assert reward["mean"] == pytest.approx(rewards[job].mean())
        assert reward["interval_95"] == pytest.approx(bootstrap_interval(rewards[job]))
        assert len(sampled[job]) == 10
        assert training["mean"] == pytest.approx(sampled[job][-2:].mean())
        assert training["first_mean"] == pytest.approx(sampled[job][:2].mean())
        assert training["interval_95"] == pytest.approx(bootstrap_interval(sampled[job][-2:]))
        assert (training["over"], training["groups"]) == ("steps", 20)
    afa_numbers = numbers["arms"][2]
    assert afa_numbers["paper_gaps_closed"] == pytest.approx({"3B": 0.4})
    assert afa_numbers["comparison"]["difference"] == pytest.approx(rewards[afa].mean() - rewards[lora].mean())
    for found, values, end in (
        (afa_numbers["gap_closed"], rewards, None),
        (afa_numbers["training_rewards"]["gap_closed"], sampled, -2),
    ):
        expected = gap_closed(*([[values[job][end:] if end else values[job]]] for job in (afa, lora, full)))
        assert (found["value"], found["reason"]) == (expected.value, expected.reason)
    assert (study.folder / "rewards.png").read_bytes().startswith(b"\x89PNG")

    before = (study.folder / "results.json").read_bytes()
    again, failures = said(load(arms=["full", "lora", AFA]))
    assert failures == {}
    assert again.count("done already") == 3
    assert (study.folder / "results.json").read_bytes() == before


def test_the_report_shows_rewards_and_says_what_they_are(study: Experiment) -> None:
    report = make_report([study.folder])
    text = " ".join(report.page.split())
    for part in (
        "Rewards × 100",
        "first → last fifth",
        "The paper&#39;s rewards",
        "mean reward",
        "3B 40.0 %",
        "Peak memory",
    ):
        assert part in text or part.replace("&#39;", "'") in text
    assert "Unparsed" not in text
    assert "Accuracy, %" not in text
    assert "Final loss" not in text
    rows = [line for line in report.markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert len({row.count("|") for row in rows}) == 1
    assert f"| {AFA} |" in report.markdown
    assert "Rewards × 100" in report.markdown
    assert "one seed" in report.markdown


def test_every_arm_samples_for_the_same_prompts(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same seed; the gap closed in training is of pairs of steps."""
    prompts: list[list[Any]] = []
    make, generate = grpo_run.make_trainer, grpo_run.ExactGRPOTrainer._generate_single_turn

    def spy_make(*arguments: Any) -> Any:
        prompts.append([])
        return make(*arguments)

    def spy(self: Any, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
        prompts[-1].append(prompt_ids)
        return generate(self, prompt_ids, *arguments, **options)

    monkeypatch.setattr(grpo_run, "make_trainer", spy_make)
    monkeypatch.setattr(grpo_run.ExactGRPOTrainer, "_generate_single_turn", spy)
    assert said(load(overrides=["train.max_steps=3"]))[1] == {}
    assert [len(arm) for arm in prompts] == [3] * 4
    assert prompts[0][0] != prompts[0][1]
    assert all(arm == prompts[0] for arm in prompts[1:])


class StopAt(TrainerCallback):
    """Raises when a checkpoint has been written."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise self.error


def sabotage(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """Let the training by one method end in an error after its first checkpoint."""
    make = grpo_run.make_trainer

    def faulty(*arguments: Any) -> Any:
        trainer = make(*arguments)
        if arguments[4].method == method:
            trainer.add_callback(StopAt(error))
        return trainer

    monkeypatch.setattr(grpo_run, "make_trainer", faulty)


def test_an_arm_that_was_interrupted_goes_on(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(arms=["lora", AFA])
    lora, afa = experiment.jobs
    with monkeypatch.context() as patched:
        sabotage(patched, "lora", KeyboardInterrupt())
        with pytest.raises(RunStopped, match="Interrupted"):
            run_experiment(experiment, Console(quiet=True))
    assert not afa.run.path.exists()
    text, failures = said(experiment)
    assert failures == {}
    assert text.count("Going on from") == 1
    assert lora.done
    assert afa.done
    whole = load(arms=["lora"], folder=experiment.folder.with_name("whole"))
    assert said(whole)[1] == {}
    assert results(whole.jobs[0])["reward"] == results(lora)["reward"]


def test_an_arm_whose_reward_function_fails_is_told_and_the_others_go_on(load: Load, tmp_path: Path) -> None:
    source = tmp_path / "faulty_rewards.py"
    source.write_text((tmp_path / "tiny_rewards.py").read_text() + "calls = []\n")
    with source.open("a") as file:
        file.write("def late(completions, **columns):\n    calls.append(1)\n")
        file.write("    return [1.0] if len(calls) == 3 else vowels(completions)\n")
    experiment = load(arms=["lora", AFA], overrides=["rewards=faulty_rewards:late", "train.max_steps=4"])
    _, failures = said(experiment)
    assert [*failures] == ["LoRA, seed 0"]
    assert "faulty_rewards:late" in failures["LoRA, seed 0"]
    (lora, afa) = read_study(experiment.folder).arms
    assert lora.runs[0].status.startswith("failed: ")
    assert afa.runs[0].status == "finished"


def test_an_arm_of_other_data_is_refused_before_it_is_trained(load: Load, tmp_path: Path) -> None:
    options = {"overrides": ["train.max_steps=2"]}
    assert said(load(arms=["lora"], **options))[1] == {}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("Say", "Sing"))
    experiment = load(arms=["lora", AFA], **options)
    with pytest.raises(StudyError, match="the train items are not those of LoRA, seed 0: their fingerprint was"):
        run_experiment(experiment, Console(quiet=True))
    assert not experiment.jobs[1].run.path.exists()


def test_with_two_seeds_the_intervals_are_students(load: Load) -> None:
    experiment = load(arms=["lora"], seeds=[0, 1], overrides=["train.max_steps=2"])
    assert said(experiment)[1] == {}
    (arm,) = make_report([experiment.folder]).numbers["studies"][0]["arms"]
    means = [results(job)["after"]["reward"] for job in experiment.jobs]
    assert arm["accuracy"]["average"]["per_seed"] == pytest.approx(means)
    assert arm["accuracy"]["average"]["over"] == arm["training_rewards"]["over"] == "seeds"
    assert arm["training_rewards"]["per_seed"] == pytest.approx(
        [results(job)["reward"][-1][1] for job in experiment.jobs]
    )


def test_runs_of_afa_grpo_on_their_own_are_listed_apart_from_others(study: Experiment) -> None:
    runs = [job.run.path for job in study.jobs]
    (loose,) = make_report(runs).numbers["studies"]
    assert (loose["title"], loose["artifact"]) == ("GRPO runs", None)
    assert [arm["seeds"] for arm in loose["arms"]] == [[None]] * 3
    assert all(arm["training_rewards"]["mean"] > 0 for arm in loose["arms"])


def test_the_plan_says_what_will_be_sampled_and_writes_nothing(load: Load, tmp_path: Path) -> None:
    experiment = load()
    before = sorted(tmp_path.rglob("*"))
    plans = plan_trainings(experiment, lambda text: None)
    assert [*plans] == ["full", "lora", "afa-lora"]
    console = Console(width=160, record=True)
    print_trainings(experiment, plans, console)
    text = " ".join(console.export_text().split())
    for part in (
        "afa-lora 2 24 6 10 1 80 480",
        "σ-A-B-σ relu linear 0%–30%",
        "0 of 4 runs are done",
        "vowels × 1",
    ):
        assert part in text
    assert sorted(tmp_path.rglob("*")) == before


def test_the_paper_scale_is_a_command_of_verl_for_each_arm_and_size(tmp_path: Path) -> None:
    found = verl_commands(FILE, "paper")
    assert found is not None
    assert len(found.commands) == 4 * 9
    for (size, name), command in found.commands.items():
        assert any(part.endswith(f"Qwen2.5-{size.upper()}-Instruct") for part in command)
        placements = [part.rpartition("=")[2] for part in command if "placement=" in part]
        assert placements == ([name.split()[-1].replace("σ", "s")] if name.startswith("AFA") else [])
        assert ("actor_rollout_ref.model.lora_rank=64" in command) == (name != "Full fine-tuning")
        assert (FILE.parents[1] / "verl" / f"qwen2.5-{size}.sh").is_file()
    console = Console(width=80, record=True)
    print_commands(found, console)
    text = console.export_text()
    assert text.count("\npython3 -m verl.trainer.main_ppo") == 36
    assert "Nothing of this scale has been run" in text
    assert "order of its Table 1" in " ".join(text.split())

    few = verl_commands(FILE, "paper", Path("/data"), ["afa-lora s-A-B"], ["verl=[7b]"])
    assert few is not None
    ((key, command),) = few.commands.items()
    assert key == ("7b", "AFA-LoRA σ-A-B")
    assert "data.train_files='/data/train.parquet'" in command
    assert verl_commands(FILE, "tiny") is None
    with pytest.raises(InvalidSettingError, match=r"verl='3bb' is not known.*Did you mean '3b'"):
        verl_commands(FILE, "paper", overrides=["verl=[3bb]"])
    with pytest.raises(InvalidSettingError, match="'paper' of table2 is run by verl, not from here: --dry-run prints"):
        load_experiment(FILE, "paper", tmp_path)


def test_what_a_suite_of_grpo_refuses(load: Load, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="this scale does not read a folder"):
        load(data=tmp_path)
    with pytest.raises(RecipeError, match="test_items must not be 0"):
        load(overrides=["data.test_items=0"])
    with pytest.raises(RecipeError, match="lora_dropout"):
        load(overrides=["adapter.lora_dropout=0.1"])
    with pytest.raises(
        RecipeError, match=r"scales.tiny.train.learning_rte: no such argument.*Did you mean 'learning_rate'"
    ):
        load(overrides=["train.learning_rte=1"])
    settings["workflow"] = "gropo"
    with pytest.raises(RecipeError, match="workflow"):
        load()
    settings["workflow"] = "sft"
    with pytest.raises(RecipeError, match=r"data\.source"):
        load()
