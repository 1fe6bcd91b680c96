"""What was counted, kept question by question, so that nothing is counted twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from afa_lora.eagle.evaluation.questions import Question
from afa_lora.eagle.evaluation.record import Record, RecordError
from afa_lora.files import write_atomic

Entry = dict[str, Any]
"""What was counted for one question, as JSON."""
KEPT_EVERY = 16  # questions: a kill costs so many at most


class Counts:
    """The counts of one draft in one file, each with the digest of the answers that it belongs to.

    Args:
        folder: of the files.
        key: what is counted: ``{"weights": …, "shape": …}``; it makes the file's name, so that other weights have
            another file.
    """

    def __init__(self, folder: Path, key: dict[str, str]) -> None:
        name = "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in key.values())
        self.path = folder / f"{name}.json"
        self._key, self._entries = key, self._read() if self.path.is_file() else {}

    def fill(
        self,
        record: Record,
        questions: Sequence[Question],
        count: Callable[[Question], Entry],
        advance: Callable[[], object] = lambda: None,
    ) -> list[Entry]:
        """Count what is missing.

        Args:
            record: holds the answers to the questions.
            questions: which to count.
            count: counts one.
            advance: called after each question, also one that was there.

        Returns:
            the entries in the order of the questions.
        """
        entries = []
        unsaved = 0
        try:
            for question in questions:
                name, digest = f"{question.set}/{question.id}", record.digest(question)
                entry = self._entries.get(name)
                if entry is None or entry["answers"] != digest:
                    entry = {"answers": digest, **count(question)}
                    self._entries[name] = entry
                    unsaved += 1
                if unsaved == KEPT_EVERY:
                    self._write()
                    unsaved = 0
                entries.append(entry)
                advance()
        finally:
            if unsaved:
                self._write()
        return entries

    def _write(self) -> None:
        write_atomic(self.path, json.dumps({**self._key, "questions": self._entries}) + "\n")

    def _read(self) -> dict[str, Entry]:
        try:
            entries: dict[str, Entry] = json.loads(self.path.read_bytes())["questions"]
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{self.path} is damaged: {error!r}. Remove it, and it is counted again.") from error
        return entries
