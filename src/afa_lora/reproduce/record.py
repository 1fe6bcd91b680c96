"""``study.json``: what a folder holds, so that nothing of another kind is mixed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.reproduce.jobs import Experiment
from afa_lora.reproduce.runs import StudyError
from afa_lora.reproduce.study import STUDY, read_study
from afa_lora.settings import differences

HARMLESS = {"title", "paper", "deviations", "seeds", "arms"}  # words, and what a folder may grow by
PLACES_OF_DATA = {f"settings.data.{key}" for key in ("folder", "file", "conversations")}  # `check_data` reads them
HARMLESS_OF_AN_ARM = {"paper", *PLACES_OF_DATA}
HARMLESS_EVALUATION = {"batch_size"}
LOCK = ".lock"  # of all that is written beside study.json


def record(experiment: Experiment) -> None:
    """Write ``study.json``; arms and seeds that an earlier start has asked for stay in it.

    Raises:
        StudyError: the folder holds another study, or files of something else.
    """
    path = experiment.folder / STUDY
    used = any(experiment.folder.glob("[!.]*"))  # looked at first: another process may be starting too
    if used and not path.is_file():
        raise StudyError(f"{experiment.folder} holds files of something else. Choose another folder (--out).")
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(experiment.folder / LOCK):
        remove_leftovers(experiment.folder)
        present = _present(experiment)
        if path.is_file():
            present = _with_earlier(experiment, present, json.loads(path.read_text(encoding="utf-8")))
        write_atomic(path, json.dumps(present, indent=2, ensure_ascii=False) + "\n")


def check_data(folder: Path, train: str | None, tests: str) -> None:
    """Refuse to go on with other data than the finished arms of a study had.

    Args:
        folder: of the study.
        train: the fingerprint of the train items; ``None`` if nothing is to be trained.
        tests: the fingerprint of the test items.

    Raises:
        StudyError: the data are others, the finished arms had not all the same, or a file is damaged.
        EvaluationError: the files of an evaluation do not agree.
    """
    runs = {f"{arm.name}, seed {run.seed}": run for arm in read_study(folder).arms for run in arm.runs}
    trained = {name: run.training.data["train_fingerprint"] for name, run in runs.items() if run.training}
    tested = {name: run.scores.settings.get("data") for name, run in runs.items() if run.scores}
    for what, present, earlier in (("train", train, trained), ("test", tests, tested)):
        for name, fingerprint in earlier.items():
            if present not in (None, fingerprint):
                raise StudyError(
                    f"{folder}: the {what} items are not those of {name}: their fingerprint was {fingerprint}, and is "
                    f"{present} now. Restore the data, or choose another folder (--out)."
                )


def _present(experiment: Experiment) -> dict[str, Any]:
    evaluate = experiment.scale.evaluate.model_dump(mode="json", exclude={*HARMLESS_EVALUATION})
    return {**experiment.describe().model_dump(mode="json"), "evaluate": evaluate}


def _with_earlier(experiment: Experiment, present: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The arms and seeds of both, in the suite's order.

    Raises:
        StudyError: something else than arms and seeds differs.
    """
    earlier = {"workflow": "sft", **earlier}  # older ones do not say it
    arms = {arm["name"]: arm for arm in earlier["arms"]}
    order = experiment.suite.arm_names
    changes = [*differences(earlier, present, HARMLESS)]
    changes += [f"arm {name!r}: it is not among the arms any more" for name in arms if name not in order]
    for arm in present["arms"]:
        if arm["name"] in arms:
            changes += [f"{arm['name']}: {line}" for line in differences(arms[arm["name"]], arm, HARMLESS_OF_AN_ARM)]
    if changes:
        raise StudyError(
            "\n  ".join([f"{experiment.folder} holds another study. There it is, here it is:", *changes])
            + "\nChoose another folder (--out), or give the same settings again to go on."
        )
    arms |= {arm["name"]: arm for arm in present["arms"]}
    return {
        **present,
        "seeds": sorted({*earlier["seeds"], *present["seeds"]}),
        "arms": sorted(arms.values(), key=lambda arm: order.index(arm["name"])),
    }
