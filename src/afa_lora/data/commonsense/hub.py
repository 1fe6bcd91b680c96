"""The eight original data sets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from afa_lora.data.commonsense.items import CommonsenseItem, read_items
from afa_lora.data.commonsense.tasks import Task
from afa_lora.data.records import DataError


def read_split(task: Task, split: str, report: Callable[[str], None]) -> list[CommonsenseItem]:
    """Render every record of one split of a task's data set; one line about it goes to ``report``.

    WinoGrande's largest size is taken. Commonsense-170K has all six in a row, 63,238 items, 40,398 different ones.

    Raises:
        DataError: the data set cannot be loaded, or has records of another form.
    """
    config = f" ({task.config})" if task.config else ""
    origin = f"{task.hub}{config}, split {split!r}"
    try:
        records = load_dataset(task.hub, task.config, split=split, revision=task.revision)
    except (ConnectionError, FileNotFoundError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{origin}: it cannot be loaded from the hub or its cache: {error}. "
            "Where there is no hub, name a folder of the eight tasks, as data.folder=PATH or --data PATH."
        ) from error
    items = read_items(origin, (("", record) for record in records), task.render)
    report(f"{origin}: {len(items)} items of {task.name}, rendered from the original records.")
    return items
