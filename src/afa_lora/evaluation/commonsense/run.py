"""An evaluation from the items to the numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.commonsense import CommonsenseItem
from afa_lora.evaluation.commonsense.folder import (
    Evaluation,
    EvaluationError,
    EvaluationFolder,
    Line,
    read_evaluation,
)
from afa_lora.evaluation.commonsense.protocols import PROTOCOLS, Asked, render_prompts
from afa_lora.evaluation.commonsense.results import summarise
from afa_lora.evaluation.commonsense.settings import EvaluationSettings, describe
from afa_lora.evaluation.generate import evaluating
from afa_lora.report.progress import progress_bar
from afa_lora.running.stopping import terminable

SPEED_OVER = 600  # seconds over which the remaining time is estimated: a batch may take a minute


class EvaluationStopped(EvaluationError):
    """Ctrl-C or SIGTERM has ended an evaluation early; what was answered is kept."""


def evaluate_commonsense(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[CommonsenseItem],
    settings: EvaluationSettings,
    folder: Path,
    console: Console | None = None,
) -> Evaluation:
    """Put items of the eight tasks to a model, and write answers and accuracies to a folder.

    Every batch is on disk before the next one begins. The same call again goes on where an earlier one was killed, with
    the same batches as if it had not been; if that one was finished, it is read and nothing is computed.

    Args:
        model: a causal language model, on the device that is to compute; put into evaluation mode meanwhile. An adapter
            in it is used as it is.
        tokenizer: the model's; it stays as it is.
        items: from `afa_lora.data.commonsense.read_tests`, for example.
        settings: protocol, prompt and the like.
        folder: made unless it is there.
        console: where progress goes; standard output unless given.

    Raises:
        EvaluationError: no items, or an item twice; the folder holds another evaluation, or another process is at it;
            there is no chat template where one is asked for; the model gives no numbers.
        EvaluationStopped: Ctrl-C or SIGTERM.
    """
    console = console or Console()
    tasks = {item.task: [other for other in items if other.task == item.task] for item in items}
    if not items or len({(item.task, item.index) for item in items}) < len(items):
        raise EvaluationError("There are no items to evaluate." if not items else "An item is there twice.")
    prompts = render_prompts(tokenizer, items, settings)
    described = describe(model, items, prompts, settings)
    files = EvaluationFolder(folder)
    with files.claimed(described) as lines:
        if not files.results.is_file():
            run = _Run(model, tokenizer, settings, files, lines)
            with evaluating(model), terminable(), progress_bar(console) as progress:
                progress.speed_estimate_period = SPEED_OVER
                bar = progress.add_task("evaluate", total=len(items), completed=len(lines), note="")
                try:
                    for task, asked in tasks.items():
                        run.answer(
                            asked, [p for p, i in zip(prompts, items, strict=True) if i.task == task], progress, bar
                        )
                except KeyboardInterrupt:
                    raise EvaluationStopped(
                        f"Stopped: {len(lines)} of {len(items)} items are answered, and kept in {folder}. The same "
                        "command again goes on from there."
                    ) from None
            files.finish(summarise(tasks, lines, described))
    return read_evaluation(folder)


class _Run:
    """One evaluation under way; ``lines`` are the items answered so far, and grow."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EvaluationSettings,
        files: EvaluationFolder,
        lines: list[Line],
    ) -> None:
        self._model, self._tokenizer, self._settings, self._files, self._lines = (
            model,
            tokenizer,
            settings,
            files,
            lines,
        )
        self._done = {(line["task"], line["index"]) for line in lines}
        self._start, self._before = time.perf_counter(), len(lines)

    def answer(self, items: Sequence[CommonsenseItem], prompts: Sequence[str], progress: Progress, bar: TaskID) -> None:
        """Answer what is not answered of one task's items, and write it down batch by batch."""
        if all((item.task, item.index) in self._done for item in items):
            return
        asked: Asked = PROTOCOLS[self._settings.protocol](self._model, self._tokenizer, items, prompts, self._settings)
        for batch in asked.batches:
            missing = [i for i in batch if (items[i].task, items[i].index) not in self._done]
            if not missing:
                continue
            start = time.perf_counter()
            replies = dict(zip(batch, asked.answer(batch), strict=True))  # whole: another padding rounds differently
            seconds = (time.perf_counter() - start) / len(missing)
            new = [
                {
                    "task": items[i].task,
                    "index": items[i].index,
                    "answer": items[i].answer,
                    "given": replies[i].given,
                    "correct": replies[i].given == items[i].answer,
                    **replies[i].record,
                    "seconds": round(seconds, 6),
                }
                for i in missing
            ]
            self._files.append(new)
            self._lines += new
            speed = (len(self._lines) - self._before) / (time.perf_counter() - self._start)
            progress.update(bar, advance=len(new), note=f"{speed:.1f} items/s  {items[0].task}")
