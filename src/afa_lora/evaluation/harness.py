"""The same model through EleutherAI's lm-evaluation-harness: its tasks, its prompts, its metrics, and its name on them.

Its numbers are not those of `afa_lora.evaluation.commonsense`, which asks otherwise; nothing here puts them together.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string
from pydantic import Field, NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.core.errors import AfaLoraError
from afa_lora.evaluation.commonsense.settings import weights_fingerprint
from afa_lora.models import check_chat_template
from afa_lora.running.provenance import environment
from afa_lora.settings import Section

SOURCE = "lm-evaluation-harness"
CLOSE_NAMES = 5  # named beside one that is not known


class HarnessError(AfaLoraError):
    """lm-evaluation-harness has no such task, or it cannot be run here."""


class HarnessSettings(Section):
    """What lm-evaluation-harness is asked to do."""

    tasks: list[str] = Field(min_length=1)
    """Names of its tasks, groups or tags."""
    limit: PositiveInt | None = None
    """So many items of each task, the first ones; all unless given."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question, where a task does not insist on none; each task's own number unless given."""
    batch_size: PositiveInt = 16
    """How many requests at a time."""
    include_path: Path | None = None
    """A folder with more tasks, as YAML files. What they name with ``!function`` is run."""
    apply_chat_template: bool = False
    """Put each prompt into the model's chat template."""
    model: str | None = None
    """The model's name, for the record."""
    adapter: str | None = None
    """The adapter's folder, for the record."""


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks and groups with their data, for one evaluation: the harness writes its results into them."""

    manager: TaskManager
    parts: list[Task | Group]


def load_tasks(settings: HarnessSettings) -> LoadedTasks:
    """Find the tasks and load their data.

    Raises:
        HarnessError: a name that is not known (the message has the closest ones), data that cannot be had, a task that
            runs code which a model writes or the hub sends, or one that shows pictures or sounds.
    """
    folder = settings.include_path
    if folder is not None and not folder.is_dir():
        raise HarnessError(f"include_path={str(folder)!r}: there is no such folder (looked for it in {Path.cwd()}).")
    manager = TaskManager(include_path=folder)
    for name in settings.tasks:
        if name not in manager.task_index:
            raise _unknown(name, manager.all_tasks, folder)
        for config in _configs(manager, name):
            _refuse_code(config)
    return LoadedTasks(manager, [part for name in settings.tasks for part in _load(manager, name)])


def evaluate_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: LoadedTasks,
    settings: HarnessSettings,
) -> dict[str, Any]:
    """Run the tasks on a model.

    Args:
        model: in evaluation mode, where it is to be run; with an adapter or merged.
        tokenizer: the model's.
        tasks: from `load_tasks`.
        settings: those that ``tasks`` were loaded with.

    Returns:
        what ``results.json`` holds: ``source``, ``version``, for each task its version, the hash of its items and
        prompts, the number of items and its metrics with standard errors, as the harness reports them; ``groups`` the
        same for groups; ``seconds``, ``settings`` (with the seeds and a fingerprint of the weights), ``environment``.

    Raises:
        ModelError: ``apply_chat_template`` for a model without one.
    """
    if settings.apply_chat_template:
        check_chat_template(settings.model or settings.adapter or "", tokenizer)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=settings.batch_size)
    started = time.perf_counter()
    found = simple_evaluate(
        lm,
        tasks=tasks.parts,
        task_manager=tasks.manager,
        num_fewshot=settings.num_fewshot,
        batch_size=settings.batch_size,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        confirm_run_unsafe_code=False,
    )
    seconds = time.perf_counter() - started
    seeds = {key: found["config"][key] for key in ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")}
    return {
        "source": SOURCE,
        "version": version("lm_eval"),
        "tasks": {name: _task(found, name) for name in found["samples"]},
        "groups": {name: _numbers(found, name) for name in found.get("groups", {})},
        "seconds": round(seconds, 2),
        "settings": {**settings.model_dump(mode="json"), **seeds, "weights": weights_fingerprint(model)},
        "environment": environment(),
    }


def print_harness(results: Mapping[str, Any], console: Console) -> None:
    """Print the results as a table that says whose they are."""
    heads = ("task", "version", "shots", "items", "filter", "metric", "value", "± stderr")
    table = Table(*heads, title=f"{results['source']} {results['version']}")
    for name, part in (*results["tasks"].items(), *results["groups"].items()):
        for row in part["metrics"]:
            stderr = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
            texts = (name, part["version"], part["num_fewshot"], part.get("items", ""), row["filter"], row["metric"])
            table.add_row(*(Text(str(text)) for text in (*texts, f"{row['value']:.4f}", stderr)))
    console.print(table)


def _unknown(name: str, known: Sequence[str], folder: Path | None) -> HarnessError:
    near = difflib.get_close_matches(name, known, n=CLOSE_NAMES)
    hint = f" The closest ones: {', '.join(near)}." if near else ""
    files = f" A YAML file in {folder} that cannot be read is passed over." if folder else ""
    return HarnessError(
        f"tasks: {SOURCE} {version('lm_eval')} knows no task, group or tag {name!r}.{hint}{files} "
        "All of them: lm-eval ls tasks"
    )


def _configs(manager: TaskManager, member: str | Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration of a task, or of a group or tag and all in it, read as text: nothing that it names has run."""
    if isinstance(member, str):
        entry = manager.task_index.get(member)
        if entry is None:  # written out where it is named
            return
        config = {"task": sorted(entry.tags)} if entry.cfg is None else entry.cfg
    else:
        config = member
        for name in (member.get("group"), member.get("task")):
            if isinstance(name, str):
                yield from _configs(manager, name)
    yield config
    if isinstance(config.get("task"), list):
        for each in config["task"]:
            yield from _configs(manager, each)


def _refuse_code(config: Mapping[str, Any]) -> None:
    """Refuse a task that runs what a model writes, or a metric that the hub sends as a program."""
    name = config.get("group") or config.get("task")
    if config.get("unsafe_code"):
        raise HarnessError(f"tasks: {name} runs code that the model writes. That is not done here.")
    for metric in config.get("metric_list") or ():
        if metric.get("hf_evaluate"):
            raise HarnessError(
                f"tasks: {name} takes the metric {metric['metric']!r} from the hub, as a program that would be run. "
                "That is not done here."
            )


def _load(manager: TaskManager, name: str) -> list[Task | Group]:
    import evaluate  # comes with lm_eval, which is looked for first

    evaluate.config.HF_EVALUATE_OFFLINE = True  # some tasks load such programs as soon as they are imported
    try:
        loaded = manager.load([name])
    except (ConnectionError, FileNotFoundError) as error:
        raise HarnessError(
            f"tasks: the data of {name} cannot be had: {error}. Without a connection the data sets have to be in the "
            "cache, or in a file that a task of your own names: a YAML file with dataset_path: json and "
            "dataset_kwargs: {data_files: …}, in the folder of --include-path."
        ) from error
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError, DatasetsError) as error:
        raise HarnessError(f"tasks: {name} cannot be loaded: {type(error).__name__}: {error}") from error
    for task in loaded["tasks"].values():
        if getattr(task, "MULTIMODAL", False):
            raise HarnessError(f"tasks: {task.task_name} shows pictures or sounds; the model reads text alone.")
    group = loaded["groups"].get(name)
    return [group] if group else list(loaded["tasks"].values())


def _task(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    hashes = [sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in found["samples"][name]]
    items = found["n-samples"][name]
    return {
        **_numbers(found, name),
        "hash": hash_string("".join(hashes)),  # what the harness itself calls `task_hashes`
        "items": items["effective"],
        "items_in_all": items["original"],
    }


def _numbers(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Of a task or group; its metrics stand in the harness under ``metric,filter`` and ``metric_stderr,filter``."""
    values, better = found["results"][name], found["higher_is_better"].get(name, {})
    metrics = []
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            stderr = values.get(f"{metric}_stderr,{kind}")  # the text "N/A" where there is none
            metrics.append(
                {
                    "metric": metric,
                    "filter": kind,
                    "value": float(value),
                    "stderr": None if stderr is None or isinstance(stderr, str) else float(stderr),
                    "higher_is_better": better.get(metric),
                }
            )
    return {"version": found["versions"].get(name), "num_fewshot": found["n-shot"].get(name), "metrics": metrics}
