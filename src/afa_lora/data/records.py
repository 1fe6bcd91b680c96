"""One item in the form that TRL and the evaluation read, and what is done with many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from afa_lora.core.errors import AfaLoraError

Message = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``"""


class DataError(AfaLoraError, ValueError):
    """Data cannot be found, read or understood."""


@dataclass(frozen=True)
class Sample:
    """One answer to learn or to check.

    Attributes:
        prompt: the messages up to the answer.
        completion: the answer; the loss is on it alone.
        entry: the record as its source has it, for scorers that need more than the answer.
    """

    prompt: tuple[Message, ...]
    completion: str
    entry: Mapping[str, Any] = field(default_factory=dict)


Record = list[Sample]
"""The samples of one record: one, or one for each answer of a conversation."""


@dataclass(frozen=True)
class Items:
    """What to train on and what to test on; no prompt is in both."""

    train: list[Sample]
    test: list[Sample]


def to_dataset(samples: Sequence[Sample]) -> Dataset:
    """The samples in TRL's conversational prompt-completion form, whose loss is on the completion."""
    return Dataset.from_dict(
        {
            "prompt": [list(sample.prompt) for sample in samples],
            "completion": [[{"role": "assistant", "content": sample.completion}] for sample in samples],
        }
    )


def fingerprint(samples: Iterable[Sample]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over prompts and completions, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps([sample.prompt, sample.completion], sort_keys=True).encode())
    return digest.hexdigest()[:16]


def counted(count: int, what: str) -> str:
    """A number and what it counts, where ``(s)`` marks the plural: ``1 item``, ``2 items`` of ``item(s)``."""
    return f"{count} {what.replace('(s)', '' if count == 1 else 's')}"


def leaving_out(counts: Mapping[str, int]) -> str:
    """The end of a sentence about what was left out: the counts above 0, and nothing if there is none."""
    listed = ", ".join(counted(count, what) for what, count in counts.items() if count)
    return f"; left out: {listed}" if listed else ""
