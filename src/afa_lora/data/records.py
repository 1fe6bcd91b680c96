"""One item in the form that TRL and the evaluation read, and how records of the common forms become such items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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


def read_record(record: Mapping[str, Any], system: str | None = None) -> list[Sample]:
    """Turn one record into samples. Its columns tell its form:

    - ``prompt``, ``completion``: two texts, or two lists of messages;
    - ``messages``: a conversation; every assistant turn becomes a sample, with all that came before as its prompt;
    - ``instruction``, ``output`` and perhaps ``input``, which is put below the instruction.

    Args:
        record: columns and values; further columns are kept in `Sample.entry`.
        system: a system message to put first, unless the record has one.

    Raises:
        DataError: no known form, or a value of the wrong kind; the caller knows file and line.
    """
    for columns, reader in FORMS.items():
        if all(record.get(column) is not None for column in columns):
            return [
                Sample(_with_system(prompt, system), completion, dict(record)) for prompt, completion in reader(record)
            ]
    known = " or ".join("/".join(columns) for columns in FORMS)
    raise DataError(f"has the columns {', '.join(map(repr, record)) or 'none'}, but needs {known}")


Turn = tuple[list[Message], str]


def _prompt_completion(record: Mapping[str, Any]) -> list[Turn]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": _text("prompt", prompt)}]
    else:
        messages = _messages("prompt", prompt)
    if isinstance(completion, str):
        return [(messages, _text("completion", completion))]
    answer = _messages("completion", completion)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise DataError("'completion' must be a text or a list of one assistant message")
    return [(messages, _text("completion", answer[0]["content"]))]


def _conversation(record: Mapping[str, Any]) -> list[Turn]:
    messages = _messages("messages", record["messages"])
    turns = [
        (messages[:i], _text(f"messages[{i}]", message["content"]))
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i > 0
    ]
    if not turns:
        raise DataError("'messages' has no assistant message to learn from")
    return turns


def _instruction(record: Mapping[str, Any]) -> list[Turn]:
    request, context = _text("instruction", record["instruction"]), record.get("input") or ""
    if not isinstance(context, str):
        raise DataError(f"'input' must be a text, not {type(context).__name__}")
    content = f"{request}\n\n{context}" if context.strip() else request
    return [([{"role": "user", "content": content}], _text("output", record["output"]))]


FORMS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], list[Turn]]] = {
    ("prompt", "completion"): _prompt_completion,
    ("messages",): _conversation,
    ("instruction", "output"): _instruction,
}


def _with_system(messages: list[Message], system: str | None) -> tuple[Message, ...]:
    if system is None or messages[0]["role"] == "system":
        return tuple(messages)
    return ({"role": "system", "content": system}, *messages)


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column!r} must be a text, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{column!r} is empty")
    return value


def _messages(column: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{column!r} must be a text or a non-empty list of messages")
    for message in value:
        good = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not good:
            raise DataError(f"{column!r} must hold messages with 'role' and 'content', not {str(message)[:80]!r}")
    return [{"role": message["role"], "content": message["content"]} for message in value]
