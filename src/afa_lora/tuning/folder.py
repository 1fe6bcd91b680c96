"""The folder of a run: what lies where, whose it is, and the files that say what was done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from afa_lora.data import Items, fingerprint
from afa_lora.evaluation import Accuracy, Answer
from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.running.checkpoints import newest
from afa_lora.running.provenance import command, environment, git_state
from afa_lora.settings import RecipeError, differences, parse_yaml
from afa_lora.tuning.recipe import TuningRecipe, dump_recipe

# What may be changed before a run goes on: it ends the same.
HARMLESS = {
    "output",  # the folder itself, spelt in another way
    *("data.folder", "data.file"),  # what is read there is compared by its fingerprint
    *("features.folder", "features.batch_tokens", "features.shard_megabytes"),  # so are these
    "merge",
    "evaluate.batch_size",
    *(f"train.{key}" for key in ("save_total_limit", "save_steps", "save_strategy", "per_device_eval_batch_size")),
    *(f"train.{key}" for key in ("report_to", "run_name", "dataloader_num_workers", "dataloader_pin_memory")),
}


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run lie below ``path``."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe, overrides and defaults included."""
        return self.path / "recipe.yaml"

    @property
    def provenance(self) -> Path:
        """Command, versions, git state, data fingerprints; one entry for each start of the run."""
        return self.path / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """The Trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """All that the training logged, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same as TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The merged (or fully trained) model with its tokenizer."""
        return self.path / "model"

    @property
    def draft(self) -> Path:
        """The trained draft of EAGLE, merged."""
        return self.path / "draft"

    @property
    def unmerged(self) -> Path:
        """A draft of EAGLE with its adapter, where it was not merged."""
        return self.path / "unmerged"

    @property
    def curves(self) -> Path:
        """Loss and β over training."""
        return self.path / "curves.png"

    @property
    def results(self) -> Path:
        """The numbers; a run counts as finished once they are here."""
        return self.path / "results.json"

    @property
    def answers_before(self) -> Path:
        """The untrained model's answers to the test items, one JSON object a line."""
        return self.path / "answers_before.jsonl"

    @property
    def answers(self) -> Path:
        """The trained model's answers to the test items, one JSON object a line."""
        return self.path / "answers.jsonl"

    def check(self, recipe: TuningRecipe) -> bool:
        """Look whether the folder can be used for this recipe; nothing is written.

        Returns:
            whether it holds an interrupted run of the same recipe.

        Raises:
            RecipeError: it holds a finished run, an interrupted run of another recipe, or files of something else.
        """
        _check_output(self.path)
        if not self.path.exists():
            return False
        if not self.recipe.is_file():
            foreign = sorted(file.name for file in self.path.iterdir() if not file.name.startswith("."))
            if foreign:
                raise RecipeError(
                    f"output={str(self.path)!r} holds files that are not of a run ({', '.join(foreign[:3])}"
                    f"{', …' if len(foreign) > 3 else ''}). Choose another output."
                )
            return False
        started = parse_yaml(self.recipe.read_text(encoding="utf-8"), str(self.recipe))
        changes = list(differences(started, parse_yaml(dump_recipe(recipe), "recipe"), HARMLESS))
        listed = " There it is, here it is:\n  " + "\n  ".join(changes) + "\n" if changes else " "
        other = " of another recipe." if changes else "."
        if self.results.is_file():
            raise RecipeError(
                f"output={str(self.path)!r} holds a finished run{other}{listed}Choose another output, or remove that "
                f"folder. {self._to_look_at_it}"
            )
        made = (self.adapter, self.model, self.draft, self.unmerged)
        if changes and (newest(self.checkpoints) or any(part.exists() for part in made)):
            raise RecipeError(
                f"output={str(self.path)!r} holds an interrupted run of another recipe.{listed}Choose another output, "
                "remove that folder, or give the same settings again to go on."
            )
        return not changes

    @property
    def _to_look_at_it(self) -> str:
        is_draft = self.draft.exists() or self.unmerged.exists()
        return f"Its numbers: {self.results}" if is_draft else f"To look at the run: afa chat {self.path}"

    @contextmanager
    def claimed(self, recipe: TuningRecipe) -> Iterator[bool]:
        """Hold the folder for this recipe while the block runs; yields what `check` returns.

        Raises:
            RecipeError: as `check`, or another process holds it.
        """
        self.check(recipe)
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RecipeError(f"Another process is training in output={str(self.path)!r} now.") from None
        with lock:
            goes_on = self.check(recipe)  # it may have been finished a moment ago
            if not goes_on:  # of an interrupted run without a checkpoint nothing can be used
                for file in (self.provenance, self.metrics, self.answers_before):
                    file.unlink(missing_ok=True)
            remove_leftovers(self.path)
            write_atomic(self.recipe, dump_recipe(recipe))
            yield goes_on

    def record_start(self, data: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Add this start of the run to its provenance; packages that have changed since the last one are said.

        Args:
            data: counts and fingerprints of what is trained and tested on, as `items_facts` gives them.
            say: takes a line.

        Raises:
            RecipeError: data or number of processes are others than at an earlier start, under the same recipe.
        """
        starts = json.loads(self.provenance.read_text(encoding="utf-8")) if self.provenance.is_file() else []
        if starts and starts[-1]["data"] != data:
            raise RecipeError(
                f"output={str(self.path)!r} holds an interrupted run, and its data have changed since. It had "
                f"{starts[-1]['data']}, now there are {data}. Restore the data, or choose another output."
            )
        present = environment()
        if starts:
            before = starts[-1]["environment"]
            if before["processes"] != present["processes"]:
                raise RecipeError(
                    f"output={str(self.path)!r} holds an interrupted run of {before['processes']} processes, now there "
                    f"are {present['processes']}: other items would be trained on. Start as many, or choose another "
                    "output."
                )
            for name in (name for name in present if present[name] != before.get(name)):
                say(f"Changed since the run was interrupted: {name} {before.get(name)} → {present[name]}.")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        start = {"time": now, "command": command(), "git": git_state(), "data": data, "environment": present}
        write_atomic(self.provenance, json.dumps([*starts, start], indent=2) + "\n")

    def write_results(self, numbers: Mapping[str, Any]) -> None:
        """Write the numbers, and with them the data and the environment; a run counts as finished from here on."""
        start = json.loads(self.provenance.read_text(encoding="utf-8"))[-1]
        there = {**numbers, "data": start["data"], "environment": start["environment"]}
        write_atomic(self.results, json.dumps(there, indent=2) + "\n")


def items_facts(items: Items) -> dict[str, Any]:
    """What a run's provenance says of its items."""
    return {
        "train_items": len(items.train),
        "train_fingerprint": fingerprint(items.train),
        "test_items": len(items.test),
        "test_fingerprint": fingerprint(items.test),
    }


def print_files(folder: RunFolder, console: Console) -> None:
    """Print where the files of a run lie, those of them that there are."""
    for label, path in (
        ("adapter", folder.adapter),
        ("model", folder.model),
        ("draft", folder.draft),
        ("unmerged", folder.unmerged),
        ("curves", folder.curves),
        ("answers", folder.answers),
        ("results", folder.results),
    ):
        if path.exists():
            console.print(f"{label:<9}{path}", soft_wrap=True, markup=False, highlight=False)


def check_place(key: str, folder: Path) -> None:
    """Look whether a folder can be made and written.

    Args:
        key: the recipe's, which names it.
        folder: where it is or will be.

    Raises:
        RecipeError: it or something above it is a file or cannot be written to.
    """
    whole = folder.resolve()
    there = next(folder for folder in (whole, *whole.parents) if folder.exists())
    if not there.is_dir():
        raise RecipeError(f"{key}={str(folder)!r} cannot be made: {there} is a file. Choose another {key}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"{key}={str(folder)!r} cannot be written: {there} is not writable. Choose another {key}.")


def _check_output(output: Path) -> None:
    check_place("output", output)
    run = next((folder for folder in output.resolve().parents if RunFolder(folder).provenance.is_file()), None)
    if run is not None:
        raise RecipeError(f"output={str(output)!r} lies inside the run {run}. Choose another output.")


def write_answers(accuracy: Accuracy, path: Path) -> None:
    """Write the answers, one JSON object a line."""
    lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in accuracy.answers]
    write_atomic(path, "".join(lines))


def read_answers(path: Path) -> Accuracy:
    """What `write_answers` wrote."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return Accuracy(tuple(Answer(**json.loads(line)) for line in lines))


def accuracy_numbers(accuracy: Accuracy | None) -> dict[str, Any] | None:
    """What ``results.json`` says of an accuracy, if there is one."""
    if accuracy is None:
        return None
    return {"correct": accuracy.correct, "items": accuracy.items, "interval_95": accuracy.interval}
