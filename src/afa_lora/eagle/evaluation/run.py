"""An evaluation of drafts, from the questions to the tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from afa_lora.core.errors import AfaLoraError, InvalidSettingError
from afa_lora.eagle.decode import Drafter, Shape, parse_shape
from afa_lora.eagle.evaluation.alpha import STEPS, alpha_counts
from afa_lora.eagle.evaluation.counts import Counts, Entry
from afa_lora.eagle.evaluation.drafts import UNTRAINED, NamedDraft, load_drafts
from afa_lora.eagle.evaluation.live import LiveCounts, LiveRun
from afa_lora.eagle.evaluation.measures import AlphaCounts, PromptCounts
from afa_lora.eagle.evaluation.questions import Question, load_questions
from afa_lora.eagle.evaluation.record import Record, record_answers
from afa_lora.eagle.evaluation.replay import replay
from afa_lora.eagle.evaluation.results import DraftEvaluation, summarise
from afa_lora.eagle.evaluation.settings import DraftEvaluationSettings
from afa_lora.eagle.evaluation.tables import markdown
from afa_lora.eagle.evaluation.target import EvaluatedTarget
from afa_lora.eagle.model import find_draft
from afa_lora.evaluation.generate import evaluating
from afa_lora.files import remove_leftovers, write_atomic
from afa_lora.report.progress import progress_bar
from afa_lora.running.provenance import command, environment, git_state
from afa_lora.running.stopping import terminable

RECORD, COUNTS, RESULTS, TABLES = "record", "counts", "results.json", "results.md"
SPEED_OVER = 600  # seconds over which the remaining time is estimated: an answer may take a minute

Cycles = dict[tuple[str, str, str], dict[str, PromptCounts]]
Alphas = dict[tuple[str, str], dict[str, AlphaCounts]]
Times = dict[tuple[str, str, str], dict[str, LiveCounts]]
_P = TypeVar("_P", PromptCounts, AlphaCounts, LiveCounts)


class DraftEvaluationError(AfaLoraError):
    """An evaluation of drafts cannot be made, or was stopped."""


class DraftEvaluationStopped(DraftEvaluationError):
    """Ctrl-C or SIGTERM."""


def evaluate_drafts(
    drafts: Mapping[str, str],
    target: str,
    data: Path,
    settings: DraftEvaluationSettings,
    folder: Path,
    console: Console | None = None,
) -> DraftEvaluation:
    """Measure drafts on the target's own answers, and write counts, numbers and tables to a folder.

    The answers are recorded once, question by question; every draft and shape is then scored without the target. The
    same call again counts only what is missing: a new draft, or one whose weights have changed, another shape, more
    questions.

    Args:
        drafts: name in the tables → folder of a run or of a draft, or ``untrained``. The first one is what the tables
            compare the others with.
        target: hub id, local folder or embedded model.
        data: the folder of the sets of questions.
        settings: sets, numbers, shapes.
        folder: made unless it is there.
        console: where progress goes; standard output unless given.

    Raises:
        QuestionError: a set is missing or cannot be read.
        ModelError: the target cannot be loaded.
        DraftError: a draft cannot be loaded, or is for another target.
        RecordError: the folder holds the record of something else.
        DraftEvaluationError: another process is at the folder.
        DraftEvaluationStopped: Ctrl-C or SIGTERM has come; what was done is kept.
    """
    shapes = _shapes(settings.shapes)
    questions = load_questions(data, settings.sets, settings.limit)
    for place in drafts.values():
        if place != UNTRAINED:
            find_draft(Path(place))
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with _claimed(folder), terminable(), _stopping(folder), progress_bar(console) as progress:
        progress.speed_estimate_period = SPEED_OVER
        asked = EvaluatedTarget(target, settings.dtype, say)
        loaded = load_drafts(drafts, asked.ends)
        bar = progress.add_task("record", total=None, note=f"greedy answers of {target}", visible=False)
        record = record_answers(
            asked,
            questions,
            settings.max_new_tokens,
            folder / RECORD,
            check_weights=settings.live,
            start=lambda missing: progress.update(bar, total=missing, visible=missing > 0),
            advance=lambda: progress.advance(bar),
        )
        work = _Work(asked, record, questions, settings.max_new_tokens, folder / COUNTS, progress)
        counted = work.count(loaded, shapes, settings.live)
    described = _describe(asked, loaded, drafts, list(shapes), questions, settings)
    return _written(folder, described, counted)


def _shapes(named: Sequence[str]) -> dict[str, Shape]:
    shapes = {str(shape): shape for shape in map(parse_shape, named)}
    if not shapes or len(shapes) < len(named):
        raise InvalidSettingError(f"shapes={named}: name at least one shape, and each once.")
    return shapes


def _written(folder: Path, described: Mapping[str, Any], counted: tuple[Cycles, Alphas, Times]) -> DraftEvaluation:
    """The evaluation, its numbers and its tables on disk."""
    results = {"settings": described, **summarise(described, *counted)}
    results |= {"command": command(), "git": git_state(), "environment": environment()}
    evaluation = DraftEvaluation(folder, described, *counted, results)
    write_atomic(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_atomic(folder / TABLES, markdown(evaluation))
    return evaluation


class _Work:
    """Counts what is missing, with a bar for each draft and shape."""

    def __init__(
        self,
        target: EvaluatedTarget,
        record: Record,
        questions: Sequence[Question],
        max_new_tokens: int,
        folder: Path,
        progress: Progress,
    ) -> None:
        self._target, self._record, self._questions, self._limit = target, record, questions, max_new_tokens
        self._folder, self._progress = folder, progress

    def count(
        self, drafts: Sequence[NamedDraft], shapes: Mapping[str, Shape], live: bool
    ) -> tuple[Cycles, Alphas, Times]:
        """All that `DraftEvaluation` holds: cycles, right predictions and, if asked for, times."""
        cycles: Cycles = {}
        alphas: Alphas = {}
        times: Times = {}
        for draft in drafts:
            for name, shape in shapes.items():
                for question, counts in zip(self._questions, self.replayed(draft, shape), strict=True):
                    cycles.setdefault((draft.name, name, question.set), {})[question.id] = counts
            for question, right in zip(self._questions, self.predicted(draft), strict=True):
                alphas.setdefault((draft.name, question.set), {})[question.id] = right
        for draft in drafts if live else []:
            for name, shape in shapes.items():
                for question, run in zip(self._questions, self.timed(draft, shape), strict=True):
                    times.setdefault((draft.name, name, question.set), {})[question.id] = run
        return cycles, alphas, times

    def replayed(self, draft: NamedDraft, shape: Shape) -> list[PromptCounts]:
        """The cycles of each question."""
        drafter = Drafter(draft.draft, self._target.ends, shape)

        def count(question: Question) -> Entry:
            turns = self._record.read(question, self._target.device)
            return asdict(_sum([replay(drafter, turn, self._limit) for turn in turns]))

        entries = self._fill("cycles", draft, shape, count)
        return [PromptCounts(tuple(entry["accepted"]), entry["tokens"]) for entry in entries]

    def predicted(self, draft: NamedDraft) -> list[AlphaCounts]:
        """The right predictions of each question."""

        def count(question: Question) -> Entry:
            turns = self._record.read(question, self._target.device)
            return asdict(_sum([alpha_counts(draft.draft, self._target.ends, turn) for turn in turns]))

        entries = self._fill(f"{STEPS}-alpha", draft, None, count)
        return [AlphaCounts(tuple(entry["hits"]), tuple(entry["positions"])) for entry in entries]

    def timed(self, draft: NamedDraft, shape: Shape) -> list[LiveCounts]:
        """The times of each question."""
        run = LiveRun(self._target.model, draft.draft, shape, self._limit)

        def count(question: Question) -> Entry:
            return asdict(_sum([run.decode(turn) for turn in self._record.read(question)]))

        with evaluating(self._target.model):
            entries = self._fill("times", draft, shape, count)
        kept = [{key: value for key, value in entry.items() if key != "answers"} for entry in entries]
        return [LiveCounts(**{**entry, "accepted": tuple(entry["accepted"])}) for entry in kept]

    def _fill(
        self, what: str, draft: NamedDraft, shape: Shape | None, count: Callable[[Question], Entry]
    ) -> list[Entry]:
        key = {"what": what, "weights": draft.weights} | ({} if shape is None else {"shape": _shape_key(shape)})
        key |= {"hardware": self._target.hardware} if what == "times" else {}
        title = " ".join(filter(None, (draft.name, "n-α" if shape is None else str(shape))))
        kind = "decode" if what == "times" else "replay"
        bar = self._progress.add_task(kind, total=len(self._questions), note=title, visible=False)

        def shown(question: Question) -> Entry:  # no bar for what was counted before
            self._progress.update(bar, visible=True)
            return count(question)

        return Counts(self._folder, key).fill(self._record, self._questions, shown, lambda: self._progress.advance(bar))


def _sum(parts: Sequence[_P]) -> _P:
    """The turns of a question together."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _shape_key(shape: Shape) -> str:
    """A shape's name, and what it stands for: the default tree may be another one some day."""
    return f"{shape}-{hashlib.sha256(repr(shape).encode()).hexdigest()[:8]}"


def _describe(
    target: EvaluatedTarget,
    drafts: Sequence[NamedDraft],
    places: Mapping[str, str],
    shapes: Sequence[str],
    questions: Sequence[Question],
    settings: DraftEvaluationSettings,
) -> dict[str, Any]:
    """What was measured, for the record and for the tables."""
    numbers: dict[str, list[str]] = {name: [] for name in settings.sets}
    for question in questions:
        numbers[question.set].append(question.id)
    return {
        "model": target.name,
        "target": target.ends.digest,
        "drafts": {draft.name: {"from": places[draft.name], "weights": draft.weights} for draft in drafts},
        "shapes": list(shapes),
        "questions": numbers,
        "max_new_tokens": settings.max_new_tokens,
        "dtype": str(target.dtype).removeprefix("torch."),
        "hardware": target.hardware,
    }


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder of an evaluation."""
    if folder.exists() and not folder.is_dir():
        raise DraftEvaluationError(f"{folder} is a file. Choose another folder (--out).")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DraftEvaluationError(f"Another process is evaluating into {folder} now.") from None
    with lock:
        for place in (folder, *folder.glob(f"{RECORD}/**/"), folder / COUNTS):
            remove_leftovers(place)
        yield


@contextmanager
def _stopping(folder: Path) -> Iterator[None]:
    """Say what Ctrl-C and SIGTERM leave behind."""
    try:
        yield
    except KeyboardInterrupt:
        raise DraftEvaluationStopped(
            f"Stopped: what was recorded and counted is kept in {folder}. The same command again goes on from there."
        ) from None
