"""An evaluation from the items to the numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afa_lora.data.commonsense import CommonsenseItem
from afa_lora.evaluation.commonsense.folder import (
    Evaluation,
    EvaluationError,
    EvaluationFolder,
    Line,
    read_evaluation,
)
from afa_lora.evaluation.commonsense.protocols import PROTOCOLS, Asked, Reply, render_prompts
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
    if not items or len({(item.task, item.index) for item in items}) < len(items):
        raise EvaluationError("There are no items to evaluate." if not items else "An item is there twice.")
    prompts = render_prompts(tokenizer, items, settings)
    described = describe(model, items, prompts, settings)
    files = EvaluationFolder(folder)
    with files.claimed(described) as lines:
        if not files.results.is_file():
            with evaluating(model), terminable(), progress_bar(console or Console()) as progress:
                progress.speed_estimate_period = SPEED_OVER
                bar = progress.add_task("evaluate", total=len(items), completed=len(lines), note="")
                start, before = time.perf_counter(), len(lines)
                try:
                    for new in _answered(model, tokenizer, items, prompts, settings, lines):
                        files.append(new)
                        lines += new
                        speed = (len(lines) - before) / (time.perf_counter() - start)
                        progress.update(bar, advance=len(new), note=f"{speed:.1f} items/s  {new[0]['task']}")
                except KeyboardInterrupt:
                    raise EvaluationStopped(
                        f"Stopped: {len(lines)} of {len(items)} items are answered, and kept in {folder}. The same "
                        "command again goes on from there."
                    ) from None
            files.finish(summarise(lines, described))
    return read_evaluation(folder)


def _answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[CommonsenseItem],
    prompts: Sequence[str],
    settings: EvaluationSettings,
    lines: Sequence[Line],
) -> Iterator[list[Line]]:
    """Answer, task by task and batch by batch, what is not among ``lines``."""
    done = {(line["task"], line["index"]) for line in lines}
    for task in dict.fromkeys(item.task for item in items):
        chosen = [i for i, item in enumerate(items) if item.task == task]
        if all((task, items[i].index) in done for i in chosen):
            continue
        asked: Asked = PROTOCOLS[settings.protocol](
            model, tokenizer, [items[i] for i in chosen], [prompts[i] for i in chosen], settings
        )
        for batch in asked.batches:
            missing = [i for i in batch if (task, items[chosen[i]].index) not in done]
            if not missing:
                continue
            start = time.perf_counter()
            replies = dict(zip(batch, asked.answer(batch), strict=True))  # whole: another padding rounds differently
            seconds = (time.perf_counter() - start) / len(missing)
            yield [_line(items[chosen[i]], replies[i], seconds) for i in missing]


def _line(item: CommonsenseItem, reply: Reply, seconds: float) -> Line:
    return {
        "task": item.task,
        "index": item.index,
        "answer": item.answer,
        "given": reply.given,
        "correct": reply.given == item.answer,
        **reply.record,
        "seconds": round(seconds, 6),
    }
