"""Running the arms of a study: the same start and data for all, skipping, resuming, failing, several processes."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback

from afa_lora.core.errors import AfaLoraError
from afa_lora.data import DataError
from afa_lora.data.commonsense import TASKS
from afa_lora.evaluation.commonsense import read_evaluation
from afa_lora.evaluation.commonsense.run import EvaluationStopped
from afa_lora.reproduce import run as run_module
from afa_lora.reproduce import work as work_module
from afa_lora.reproduce.jobs import Experiment, Job, load_experiment
from afa_lora.reproduce.record import record
from afa_lora.reproduce.run import run_experiment
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import read_study
from afa_lora.running.checkpoints import NonFiniteError
from afa_lora.sft import run as sft_run
from afa_lora.sft.trainer import ExactSFTTrainer
from afa_lora.tuning.failures import RunStopped

Load = Callable[..., Experiment]


@pytest.fixture
def load(suite: Path, tasks: Path, tmp_path: Path) -> Load:
    """Load the experiment with other arms, seeds, overrides or folder."""

    def load(**options: Any) -> Experiment:
        return load_experiment(suite, "tiny", **{"folder": tmp_path / "out", "data": tasks, **options})

    return load


def starts(job: Job) -> int:
    """How often a job's training was started."""
    return len(json.loads(job.run.provenance.read_text()))


def said(experiment: Experiment) -> tuple[str, dict[str, str]]:
    """Run; what was printed, and what failed."""
    console = Console(record=True, width=200, quiet=False)
    failures = run_experiment(experiment, console)
    return console.export_text(), failures


def test_every_arm_starts_alike_and_sees_the_same_batches(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_a: list[dict[str, Tensor]] = []
    batches: list[list[Tensor]] = []
    make, step = sft_run.make_trainer, ExactSFTTrainer.training_step

    def spy_make(model: Any, *rest: Any) -> Any:
        trainer = make(model, *rest)
        first_a.append({name: p.detach().clone() for name, p in model.named_parameters() if ".lora_A." in name})
        batches.append([])
        return trainer

    def spy_step(self: ExactSFTTrainer, model: Any, inputs: Any, *rest: Any, **options: Any) -> Tensor:
        batches[-1].append(inputs["input_ids"].clone())
        return step(self, model, inputs, *rest, **options)

    monkeypatch.setattr(sft_run, "make_trainer", spy_make)
    monkeypatch.setattr(ExactSFTTrainer, "training_step", spy_step)
    monkeypatch.setattr(work_module.SftWork, "evaluate", lambda self, job: None)
    assert run_experiment(experiment, Console(quiet=True)) == {}

    full, lora, *others = first_a
    assert full == {}
    assert len(lora) == 4
    assert len(others) == 3  # two placements and DoRA
    for other in others:
        assert other.keys() == lora.keys()
        assert all(torch.equal(other[name], lora[name]) for name in lora)
    assert [len(sequence) for sequence in batches] == [4] * 5
    for sequence in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(sequence, batches[0], strict=True))


def test_a_study_is_trained_tested_reported_and_skipped_when_done(load: Load) -> None:
    experiment = load(arms=["AFA-LoRA A-σ-B", "Full"], seeds=[0, 1])
    text, failures = said(experiment)
    assert failures == {}
    study = read_study(experiment.folder)
    assert [arm.name for arm in study.arms] == ["Full", "AFA-LoRA A-σ-B"]
    assert study.seeds == (0, 1)
    for arm in study.arms:
        assert [run.status for run in arm.runs] == ["finished", "finished"]
    for job in experiment.jobs:
        evaluation = read_evaluation(job.evaluation)
        assert {task: len(items) for task, items in evaluation.correct.items()} == dict.fromkeys(evaluation.correct, 2)
        assert len(evaluation.correct) == 8
        assert not (job.run.path / "model").exists() or job.recipe.method == "full"
    weights = {(j.arm, j.seed): read_evaluation(j.evaluation).settings["weights"] for j in experiment.jobs}
    assert len({*weights.values()}) == 4  # every arm and seed gave a model of its own
    for name in ("report.html", "table.md", "results.json"):
        assert (experiment.folder / name).stat().st_size > 0
        assert str(experiment.folder / name) in text
    assert "AFA-LoRA A-σ-B" in (experiment.folder / "table.md").read_text()

    again, failures = said(experiment)
    assert failures == {}
    assert again.count("done already") == 4
    assert {starts(job) for job in experiment.jobs} == {1}


def test_other_arms_and_seeds_join_a_study(load: Load) -> None:
    record(load(arms=["LoRA"]))
    record(load(arms=["Full"], seeds=[2]))
    record(load(arms=["LoRA"], overrides=["evaluate.batch_size=3"]))
    described = json.loads((load().folder / "study.json").read_text())
    assert [arm["name"] for arm in described["arms"]] == ["Full", "LoRA"]
    assert described["seeds"] == [0, 2]
    assert described["arms"][1]["paper"] == dict.fromkeys([*TASKS, "average"], 80.0)


def test_a_study_from_before_there_were_workflows_goes_on(load: Load) -> None:
    record(load(arms=["LoRA"]))
    path = load().folder / "study.json"
    described = json.loads(path.read_text())
    assert described.pop("workflow") == "sft"
    path.write_text(json.dumps(described))
    record(load(arms=["Full"]))
    assert [arm["name"] for arm in json.loads(path.read_text())["arms"]] == ["Full", "LoRA"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.learning_rate=0.5"], r"LoRA: settings.train.learning_rate: 0.001 → 0.5"),
        (["evaluate.limit=1"], "evaluate.limit: 2 → 1"),
    ],
)
def test_a_folder_of_other_settings_is_refused(load: Load, overrides: list[str], message: str) -> None:
    record(load(arms=["LoRA"]))
    with pytest.raises(StudyError, match=message):
        run_experiment(load(arms=["LoRA"], overrides=overrides))


def test_the_same_data_in_another_folder_are_the_same_study(load: Load, tasks: Path, tmp_path: Path) -> None:
    assert said(load(arms=["LoRA"]))[1] == {}
    shutil.copytree(tasks, tmp_path / "moved")
    text, failures = said(load(arms=["LoRA", "Full"], data=tmp_path / "moved"))
    assert failures == {}
    assert text.count("done already") == 1


@pytest.mark.parametrize(("part", "name"), [("test", "boolq"), ("train", "ARC-Easy")])
def test_an_arm_of_other_data_is_refused_before_it_is_trained(
    load: Load, tasks: Path, tmp_path: Path, part: str, name: str
) -> None:
    assert said(load(arms=["LoRA"]))[1] == {}
    shutil.copytree(tasks, tmp_path / "changed")
    path = tmp_path / "changed" / name / f"{part}.json"
    path.write_text(path.read_text().replace("sky?", "sea?"))
    experiment = load(arms=["LoRA", "Full"], data=tmp_path / "changed")
    with pytest.raises(StudyError, match=f"the {part} items are not those of LoRA, seed 0: their fingerprint was"):
        run_experiment(experiment, Console(quiet=True))
    assert not any(job.run.path.exists() for job in experiment.jobs if job.arm == "Full")


def test_nothing_is_trained_beside_finished_arms_of_different_data(load: Load) -> None:
    experiment = load(arms=["LoRA", "DoRA"])
    assert said(experiment)[1] == {}
    provenance = experiment.jobs[0].run.provenance
    (start,) = json.loads(provenance.read_text())
    start["data"]["train_fingerprint"] = "0" * 16
    provenance.write_text(json.dumps([start]))
    joined = load(arms=["Full", "DoRA"])
    with pytest.raises(StudyError, match="trained on other data"):
        run_experiment(joined, Console(quiet=True))
    assert not joined.jobs[0].run.path.exists()


def test_the_report_is_written_while_no_other_process_clears_the_folder(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`record` removes half-written files, and holds a lock meanwhile."""
    experiment = load(arms=[], seeds=[])
    record(experiment)
    write, held = run_module.write_atomic, []

    def spy(*arguments: Any) -> None:
        lock = FileLock(experiment.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            held.append(True)
        else:
            lock.release()
            held.append(False)
        write(*arguments)

    monkeypatch.setattr(run_module, "write_atomic", spy)
    run_module._report(experiment, Console(quiet=True))
    assert held == [True] * 3


def test_a_folder_of_something_else_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(StudyError, match="holds files of something else"):
        run_experiment(load())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_test_sets_that_are_missing_are_told_before_anything_is_trained(load: Load, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    experiment = load(data=tmp_path / "empty")
    with pytest.raises(DataError, match="no test set"):
        run_experiment(experiment, Console(quiet=True))
    assert not any(job.run.path.exists() for job in experiment.jobs)


class StopAt(TrainerCallback):
    """Raises when a checkpoint has been written."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise self.error


def sabotage(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    """Let the training by one method end in an error after its first checkpoint."""
    make = sft_run.make_trainer

    def faulty(*arguments: Any) -> Any:
        trainer = make(*arguments)
        if arguments[-1].method == method:
            trainer.add_callback(StopAt(error))
        return trainer

    monkeypatch.setattr(sft_run, "make_trainer", faulty)


def test_an_arm_that_fails_is_told_and_the_others_go_on(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(arms=["Full", "LoRA", "DoRA"])
    full, lora, dora = experiment.jobs
    with monkeypatch.context() as patched:
        sabotage(patched, "lora", NonFiniteError("the loss is nan at step 3"))
        sabotage(patched, "full", torch.OutOfMemoryError("CUDA out of memory"))
        _, failures = said(experiment)
    assert [*failures] == ["Full, seed 0", "LoRA, seed 0"]
    assert "Out of memory" in failures["Full, seed 0"]
    assert "Training has diverged: the loss is nan at step 3" in failures["LoRA, seed 0"]
    assert json.loads((lora.folder / "failure.json").read_text())["message"] == failures["LoRA, seed 0"]
    assert dora.done
    assert not lora.trained
    assert not full.trained

    text, failures = said(load(arms=["LoRA"]))
    assert failures == {}
    assert "Going on from" in text
    assert lora.done
    assert not (lora.folder / "failure.json").exists()


def test_ctrl_c_ends_the_study_and_it_goes_on_where_it_was(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(arms=["LoRA", "DoRA"])
    lora, dora = experiment.jobs
    with monkeypatch.context() as patched:
        sabotage(patched, "lora", KeyboardInterrupt())
        with pytest.raises(RunStopped, match="Interrupted"):
            run_experiment(experiment, Console(quiet=True))
    assert not dora.run.path.exists()
    assert not (lora.folder / "failure.json").exists()
    text, failures = said(load(arms=["LoRA"]))
    assert failures == {}
    assert text.count("Going on from") == 1
    assert lora.done


def test_an_evaluation_that_was_interrupted_goes_on(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(arms=["LoRA"])
    (job,) = experiment.jobs
    with monkeypatch.context() as patched:
        evaluate = work_module.evaluate_commonsense

        def half(model: Any, tokenizer: Any, items: Any, *rest: Any) -> Any:
            original = model.generate
            calls = iter(range(3))

            def generate(*arguments: Any, **options: Any) -> Any:
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return original(*arguments, **options)

            model.generate = generate
            return evaluate(model, tokenizer, items, *rest)

        patched.setattr(work_module, "evaluate_commonsense", half)
        with pytest.raises(EvaluationStopped, match="goes on"):
            run_experiment(experiment, Console(quiet=True))
    answered = len((job.evaluation / "items.jsonl").read_text().splitlines())
    assert 0 < answered < 16
    text, _ = said(experiment)
    assert "Trained already" in text
    assert starts(job) == 1
    assert job.done


def test_an_arm_that_another_process_holds_is_left_to_it(load: Load) -> None:
    experiment = load(arms=["LoRA", "DoRA"])
    lora, dora = experiment.jobs
    record(experiment)
    lora.folder.mkdir(parents=True)
    with FileLock(lora.folder / ".lock"):
        text, failures = said(experiment)
    assert failures == {}
    assert "LoRA, seed 0: another process is at it" in text
    assert dora.done
    assert not lora.run.path.exists()


def test_an_arm_that_has_failed_elsewhere_meanwhile_is_not_tried_again(load: Load) -> None:
    experiment = load(arms=["LoRA"])
    (job,) = experiment.jobs
    record(experiment)
    job.folder.mkdir(parents=True)
    (job.folder / "failure.json").write_text(json.dumps({"time": 2e10, "message": "diverged"}))
    text, failures = said(experiment)
    assert "it has failed in another process" in text
    assert failures == {}
    assert not job.run.path.exists()


def test_a_process_with_a_failure_ends_after_the_others(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher ends all of its processes when one of them fails."""

    def fail(recipe: Any, console: Any) -> None:
        raise AfaLoraError("no such thing")

    experiment = load(arms=["LoRA", "DoRA"])
    _, dora = experiment.jobs
    record(experiment)
    dora.folder.mkdir(parents=True)
    holding, released = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(dora.folder / ".lock"):
            holding.set()
            time.sleep(1)
            released.set()

    other = threading.Thread(target=hold)
    other.start()
    holding.wait()
    monkeypatch.setattr(work_module, "run_sft", fail)
    _, failures = said(experiment)
    assert released.is_set()
    other.join()
    assert failures == {"LoRA, seed 0": "no such thing"}


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_share_the_arms_out(suite: Path, tasks: Path, tmp_path: Path, load: Load) -> None:
    arguments = (suite, "--data", tasks, "--out", tmp_path / "out", "--arms", "Full,LoRA,DoRA")
    command = [sys.executable, "-m", "afa_cli", "reproduce", *map(str, arguments)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    experiment = load(arms=["Full", "LoRA", "DoRA"])
    assert {starts(job) for job in experiment.jobs} == {1}
    assert all(job.done for job in experiment.jobs)
    assert sum(output.count("train ") > 0 for output in outputs) == 2  # both had a part of it
    results = json.loads((experiment.folder / "results.json").read_text())
    assert all(arm["accuracy"] for arm in results["studies"][0]["arms"])  # the last one reported on all
