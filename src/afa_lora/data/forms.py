"""The forms that records come in, and how a record of each becomes samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from afa_lora.core.errors import closest
from afa_lora.data.records import DataError, Message, Record, Sample, counted, leaving_out
from afa_lora.data.sources import RecordData

Turn = tuple[list[Message], str]
"""The messages up to an answer, and the answer."""

UNASKED = "answer(s) that no user turn precedes"
EMPTY = "answer(s) without text, or to a turn without text"
UNANSWERED = "conversation(s) without an answer to learn"

MOST_FAULTS = 10  # bad rows that a message lists


@dataclass(frozen=True)
class Reading:
    """What became of one record.

    Attributes:
        form: the name of its form, a key of `FORMS`.
        samples: one for each answer to learn.
        left_out: what in it is not learnt, and how often.
    """

    form: str
    samples: list[Sample]
    left_out: Counter[str]


@dataclass(frozen=True)
class _Form:
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Counter[str]], list[Turn]]
    optional: tuple[str, ...] = ()


def read_records(
    origin: str,
    rows: Iterable[tuple[str, Mapping[str, Any] | DataError]],
    source: RecordData,
    report: Callable[[str], None],
) -> list[Record]:
    """Turn the rows of one file or split into samples; one line about them goes to ``report``.

    Args:
        origin: the file or split, as messages name it.
        rows: each with the place where it stands, such as ``line 17``; or what is wrong there.
        source: gives the columns' new names, the form if it is chosen, and the system message.
        report: takes one line of text.

    Returns:
        The records that have samples.

    Raises:
        DataError: rows that cannot be read: how many, and of the first `MOST_FAULTS` the places and faults.
    """
    records: list[Record] = []
    faults: list[tuple[str, str]] = []
    unused: dict[str, None] = {}
    forms: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for place, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            record = _rename(row, source.columns)
            reading = read_record(record, source.system, source.form)
        except DataError as error:
            faults.append((place, str(error)))
            continue
        if reading.samples:
            records.append(reading.samples)
        forms[reading.form] += 1
        left_out += reading.left_out
        unused |= dict.fromkeys(_unused(record, FORMS[reading.form]))
    if faults:
        raise DataError(all_faults(origin, faults))
    renamed = "".join(f", {old} read as {new}" for new, old in source.columns.items())
    how = " and ".join(counted(count, f"record(s) as {form}") for form, count in forms.items()) or "0 records"
    ignored = f"; not used: {', '.join(unused)}" if unused else ""
    report(f"{origin}: {how}{renamed}; {counted(sum(map(len, records)), 'sample(s)')}{leaving_out(left_out)}{ignored}.")
    return records


def _unused(record: Mapping[str, Any], form: _Form) -> Iterable[str]:
    used = form.columns + form.optional
    return (column for column, value in record.items() if column not in used and value is not None)


def all_faults(origin: str, faults: list[tuple[str, str]]) -> str:
    """What is wrong with the rows; those of the first few with the same fault share a line."""
    if len(faults) == 1:
        return f"{origin}, {faults[0][0]}: {faults[0][1]}"
    places: dict[str, list[str]] = {}
    for place, fault in faults[:MOST_FAULTS]:
        places.setdefault(fault, []).append(place)
    listed = "".join(f"\n  {', '.join(where)}: {fault}" for fault, where in places.items())
    first = f", the first {MOST_FAULTS} of which are" if len(faults) > MOST_FAULTS else ""
    return f"{origin}: {len(faults)} rows cannot be read{first}:{listed}"


def read_record(record: Mapping[str, Any], system: str | None = None, form: str | None = None) -> Reading:
    """Turn one record into samples. Its columns tell its form:

    - ``prompt-completion``: ``prompt`` and ``completion``, two texts or two lists of messages;
    - ``messages``: a conversation of ``{role, content}``; every assistant turn becomes a sample, with all that came
      before as its prompt;
    - ``instruction``: ``instruction``, ``output`` and perhaps ``input``, which is put below the instruction;
    - ``sharegpt``: ``conversations`` of ``{from, value}``, read like ``messages``. Published ones are pieces of longer
      conversations, so one without an answer, or with an empty turn, is no fault but left out and counted.

    An answer at the start of a conversation, which no user turn precedes, is not learnt and stands in no prompt.

    Args:
        record: columns and values; further columns are kept in `Sample.entry`.
        system: a system message to put first, unless the record has one.
        form: the name of the form; without it, the one whose columns are there.

    Raises:
        DataError: no form or two forms fit, or a value of the wrong kind; the caller knows file and line.
    """
    name = _find_form(record, form)
    left_out: Counter[str] = Counter()
    turns = FORMS[name].read(record, left_out)
    samples = [Sample(_with_system(prompt, system), completion, dict(record)) for prompt, completion in turns]
    return Reading(name, samples, left_out)


def read_conversation(record: Mapping[str, Any]) -> list[Message]:
    """The messages of one record of any form of `read_record`, in their order: whole, nothing left out.

    Raises:
        DataError: as `read_record`; but a conversation without turns, without an answer or with empty turns is none.
    """
    form = _find_form(record, None)
    if form == "sharegpt":
        return _sharegpt_messages(record)
    if form == "messages":
        return _plain_messages(record) if record["messages"] != [] else []
    ((prompt, answer),) = FORMS[form].read(record, Counter())
    return [*prompt, {"role": "assistant", "content": answer}]


def _rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    if not columns:
        return record
    for new, old in columns.items():
        if old not in record:
            raise DataError(
                f"there is no column {old!r}, which data.columns.{new} names.{closest(old, record)} "
                f"The record has the columns {_listed(record)}."
            )
        if new in record and new not in columns.values():
            raise DataError(
                f"the record has a column {new!r} already, which data.columns.{new}={old} would hide. Give that one "
                f"another name too, as data.columns.other_{new}={new}."
            )
    kept = {column: value for column, value in record.items() if column not in columns.values()}
    return {new: record[old] for new, old in columns.items()} | kept


def _find_form(record: Mapping[str, Any], chosen: str | None) -> str:
    """The name of the one form whose columns are all there and hold something."""
    among = FORMS if chosen is None else {chosen: FORMS[chosen]}
    fitting = [name for name, form in among.items() if all(record.get(column) is not None for column in form.columns)]
    if len(fitting) > 1:
        both = " and of ".join(f"{name} ({', '.join(FORMS[name].columns)})" for name in fitting)
        raise DataError(f"the record has the columns of {both}. Choose one of them, as data.form={fitting[0]}.")
    if fitting:
        return fitting[0]
    for form in among.values():
        if all(column in record for column in form.columns):
            empty = [column for column in form.columns if record[column] is None]
            raise DataError(f"{_listed(empty)} must hold something, not null.")
    missing = next(column for form in among.values() for column in form.columns if column not in record)
    known = "; ".join(f"{name}: {'/'.join(form.columns)}" for name, form in among.items())
    raise DataError(
        f"the record has the columns {_listed(record)}, but needs those of {'a' if chosen is None else 'its'} form "
        f"({known}).{_near_miss(record, among)} Where a column has another name, give it with data.columns, as "
        f"data.columns.{missing}=NAME{list_hint(record)}."
    )


def list_hint(record: Mapping[str, Any]) -> str:
    """A remedy if one of the values is a list of objects other than messages: perhaps those are the records."""
    for column, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and not value[0].keys() & {"role", "from"}:
            return f". If the records are in {column!r}, give that list itself"
    return ""


def _near_miss(record: Mapping[str, Any], among: Mapping[str, _Form]) -> str:
    """A question about the first column whose name is nearly one that is missing."""
    missing = [column for form in among.values() for column in form.columns if column not in record]
    hints = (f" {column!r}:{hint}" for column in record if (hint := closest(column, missing)))
    return next(hints, "")


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _prompt_completion(record: Mapping[str, Any], left_out: Counter[str]) -> list[Turn]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": _text("prompt", prompt)}]
    else:
        messages = _messages("prompt", prompt)
    if isinstance(completion, str):
        return [(messages, _text("completion", completion))]
    answer = _messages("completion", completion)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise DataError("'completion' must be a text or a list of one assistant message.")
    return [(messages, _text("completion", answer[0]["content"]))]


def _instruction(record: Mapping[str, Any], left_out: Counter[str]) -> list[Turn]:
    request = _text("instruction", record["instruction"])
    context = "" if record.get("input") is None else unicode_text("input", record["input"])
    content = f"{request}\n\n{context}" if context.strip() else request
    return [([{"role": "user", "content": content}], _text("output", record["output"]))]


def _conversation(record: Mapping[str, Any], left_out: Counter[str]) -> list[Turn]:
    messages = _plain_messages(record)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            _text(f"messages[{index}].content", message["content"])
    turns = _answers(messages, left_out)
    if not turns:
        roles = _listed(dict.fromkeys(message["role"] for message in messages))
        raise DataError(f"'messages' has no assistant message that answers a user's. Its roles are {roles}.")
    return turns


def _plain_messages(record: Mapping[str, Any]) -> list[Message]:
    messages = _messages("messages", record["messages"])
    for index, message in enumerate(messages):
        role = message["role"]
        if role != ROLES.get(role, role):
            raise DataError(
                f"'messages[{index}].role' is {role!r}, which is {ROLES[role]!r} here. {role!r} is a name of the form "
                "sharegpt, whose column 'conversations' holds turns with 'from' and 'value'."
            )
    return messages


ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}
"""The names that ShareGPT's conversations have for the roles."""


def _sharegpt(record: Mapping[str, Any], left_out: Counter[str]) -> list[Turn]:
    answers = _answers(_sharegpt_messages(record), left_out)
    learnt = [(prompt, answer) for prompt, answer in answers if answer.strip() and prompt[-1]["content"].strip()]
    left_out.update({EMPTY: len(answers) - len(learnt), UNANSWERED: int(not answers)})
    return learnt


def _sharegpt_messages(record: Mapping[str, Any]) -> list[Message]:
    turns = record["conversations"]
    messages = _messages("conversations", turns, "from", "value") if turns else []
    for index, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise DataError(f"'conversations[{index}].from' is {message['role']!r}, which is none of {_listed(ROLES)}.")
    return [{**message, "role": ROLES[message["role"]]} for message in messages]


def _answers(messages: list[Message], left_out: Counter[str]) -> list[Turn]:
    """Every assistant message after the first user message, with what came before it."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    asked = [message for i, message in enumerate(messages) if i > first or message["role"] != "assistant"]
    left_out[UNASKED] += len(messages) - len(asked)
    return [(asked[:i], message["content"]) for i, message in enumerate(asked) if message["role"] == "assistant"]


FORMS = {
    "prompt-completion": _Form(("prompt", "completion"), _prompt_completion),
    "messages": _Form(("messages",), _conversation),
    "instruction": _Form(("instruction", "output"), _instruction, optional=("input",)),
    "sharegpt": _Form(("conversations",), _sharegpt),
}


def _with_system(messages: list[Message], system: str | None) -> tuple[Message, ...]:
    if system is None or messages[0]["role"] == "system":
        return tuple(messages)
    return ({"role": "system", "content": system}, *messages)


def _text(column: str, value: Any) -> str:
    if not unicode_text(column, value).strip():
        raise DataError(f"{column!r} is empty.")
    return str(value)


def unicode_text(column: str, value: Any) -> str:
    """The value, which must be a text that can be written as UTF-8: JSON may hold one half of a surrogate pair."""
    if not isinstance(value, str):
        raise DataError(f"{column!r} must be a text, not {_kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column!r} is no Unicode text at character {error.start} ({error.reason}).") from error
    return value


def _messages(column: str, value: Any, role: str = "role", content: str = "content") -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{column!r} must be a text or a non-empty list of messages, not {_kind(value)}.")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not message.keys() >= {role, content}:
            raise DataError(
                f"{column!r} must hold messages with {role!r} and {content!r}, "
                f"but {column}[{index}] is {str(message)[:80]}."
            )
        for key in (role, content):
            unicode_text(f"{column}[{index}].{key}", message[key])
    return [{"role": message[role], "content": message[content]} for message in value]


def _kind(value: Any) -> str:
    return "null" if value is None else "an empty list" if value == [] else f"{type(value).__name__}"
