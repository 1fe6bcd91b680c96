"""Every mistake in a recipe at once: where it stands, what it says, what is allowed, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from afa_lora.core.errors import AfaLoraError, closest
from afa_lora.settings.arguments import Arguments
from afa_lora.settings.section import Section

LISTED_KEYS = 20  # a longer list helps nobody
LONGEST_VALUE = 60  # characters of a value in a message
# What is expected where a value has the wrong type, by pydantic's names for such errors up to the underscore.
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "path": "a path",
    "list": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "typed": "keys with values",
    "dataclass": "keys with values",
    "none": "null",
}

S = TypeVar("S", bound=Section)


class RecipeError(AfaLoraError, ValueError):
    """A recipe cannot be read, or asks for something that cannot be done."""


def validate(model: type[S], settings: Mapping[str, Any], origin: str, lines: Mapping[str, str] | None = None) -> S:
    """Make a ``model`` of ``settings``.

    Args:
        model: the recipe's class.
        settings: nested keys and values.
        origin: where they come from, for the message.
        lines: where a dotted key stands, such as ``{"train.seed": "line 12"}``.

    Raises:
        RecipeError: one line for each mistake.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        found: dict[str, list[Any]] = {}
        places = {}
        for fault in error.errors():
            place = _locate(model, fault["loc"])
            places[place.key] = place
            found.setdefault(place.key, []).append(fault)
    lines = _with_sections(lines or {})
    messages = [
        f"{_where(lines, key)}{key}{_explain(found[key], places[key], model)}"
        for key in sorted(found, key=lambda key: _line_number(lines, key))
    ]
    count = "1 mistake" if len(messages) == 1 else f"{len(messages)} mistakes"
    raise RecipeError("\n  ".join([f"{origin}: {count}", *messages]))


def in_our_words(message: str, section: str, keys: Container[str]) -> str:
    """A library's complaint with our names of its arguments: ``--seed`` and ```args.seed``` become ``train.seed``."""

    def renamed(match: re.Match[str]) -> str:
        name = match["quoted"] or match["option"]
        return f"{section}.{name}{match['value'] or ''}" if name in keys else match[0]

    return re.sub(r"`(?:args\.|--)?(?P<quoted>\w+)(?P<value>=[^`]*)?`|--(?P<option>\w+)", renamed, message)


@dataclass(frozen=True)
class _Place:
    """A spot in a recipe: its dotted key, and the keys that its section knows."""

    key: str
    known: tuple[str, ...]
    arguments: Arguments | None


def _locate(model: type[Section], location: tuple[int | str, ...]) -> _Place:
    """Follow pydantic's location to a key, past the parts by which it tells the members of a union apart."""
    parts: list[str] = []
    section: type[Section] | None = model
    for depth, part in enumerate(map(str, location)):
        if section is None:
            break
        parts.append(part)
        field = section.model_fields.get(part)
        if field is None:
            return _Place(".".join(parts), tuple(section.model_fields), None)
        arguments = _arguments(field)
        if arguments is not None:
            return _Place(".".join([*parts, *map(str, location[depth + 1 : depth + 2])]), arguments.keys, arguments)
        section, tag = _inner(field, location[depth + 1 :])
        if section is not None and _is_list(field) and len(location) > depth + 1:
            parts[-1] += f"[{location[depth + 1]}]"
            rest = _locate(section, location[depth + 2 :])
            known = len(location) > depth + 2
            return _Place(".".join([*parts, rest.key] if known else parts), rest.known, rest.arguments)
        if tag:  # the discriminator's value takes one place in the location
            rest = _locate(section, location[depth + 2 :]) if section else _Place("", (), None)
            return _Place(".".join(filter(None, [*parts, rest.key])), rest.known, rest.arguments)
    return _Place(".".join(parts) or "top level", tuple(section.model_fields) if section else (), None)


def _arguments(field: FieldInfo) -> Arguments | None:
    return next((mark for mark in field.metadata if isinstance(mark, Arguments)), None)


def _inner(field: FieldInfo, rest: tuple[int | str, ...]) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, if it holds one, and whether a tag chooses it."""
    annotation = field.annotation
    if _is_list(field):
        (annotation,) = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    if isinstance(field.discriminator, str):
        for member in get_args(annotation):
            if rest and rest[0] in get_args(member.model_fields[field.discriminator].annotation):
                return member, True
    return None, False


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list


def _with_sections(lines: Mapping[str, str]) -> dict[str, str]:
    """The places of keys, and those of sections that only overrides have made."""
    complete = dict(lines)
    for key, place in lines.items():
        parents = key.split(".")[:-1]
        for depth in range(len(parents)):
            complete.setdefault(".".join(parents[: depth + 1]), place)
    return complete


def _line_number(lines: Mapping[str, str], key: str) -> float:
    """For sorting: what is missing first, what comes from the command line last."""
    number = lines.get(key, "line 0").removeprefix("line ")
    return int(number) if number.isdecimal() else float("inf")


def _where(lines: Mapping[str, str], key: str) -> str:
    return f"{lines[key]}: " if key in lines else ""


def _explain(faults: list[Any], place: _Place, model: type[Section]) -> str:
    """What is wrong at one place; several faults there are the ways in which no member of a union fits."""
    fault = faults[0]
    value = f" = {_shown(fault['input'])}"
    if fault["type"] == "missing":
        return " is needed."
    if fault["type"] == "extra_forbidden":
        return f": {_unknown(place, model)}"
    if fault["type"] == "union_tag_not_found":
        return f".{fault['ctx']['discriminator'].strip(chr(39))} is needed."
    if fault["type"] == "union_tag_invalid":
        return f".{_tag(fault)}"
    expected = [EXPECTED.get(f["type"].split("_")[0], "") for f in faults if f["type"] != "literal_error"]
    choices = [f["ctx"]["expected"] for f in faults if f["type"] == "literal_error"]
    if all(expected):
        wanted = [*dict.fromkeys(choices), *_without_doubles(expected)]
        near = closest(str(fault["input"]), _quoted(choices)) if choices else ""
        return f"{value}: it must be {' or '.join(wanted)}.{near}"
    fault = next(f for f in faults if f["type"].split("_")[0] not in {*EXPECTED, "literal"})
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "it must")
    if isinstance(fault["input"], Mapping):  # the keys of a section do not go together; the message names them
        return f": {message}"
    again = f"{place.key.rpartition('.')[2]}={fault['input']!r} "
    return f"{value}: {'it ' + message.removeprefix(again) if message.startswith(again) else message}"


def _tag(fault: Any) -> str:
    context = fault["ctx"]
    key, tag = context["discriminator"].strip("'"), context["tag"]
    tags = _quoted([context["expected_tags"]])
    return f"{key} = {tag!r}: it must be {', '.join(map(repr, tags[:-1]))} or {tags[-1]!r}.{closest(tag, tags)}"


def _unknown(place: _Place, model: type[Section]) -> str:
    key = place.key.rpartition(".")[2]
    if place.arguments is not None and key in place.arguments.set_elsewhere:
        return f"this is set by {place.arguments.set_elsewhere[key]}, not here."
    home = next((name for name, field in model.model_fields.items() if key in _keys_of(field)), None)
    near = closest(key, place.known)
    if home is not None and not near:
        return f"there is no such key here; it belongs in {home!r}."
    what = f"no such argument of {place.arguments.name}" if place.arguments else "no such key"
    listed = f" Known keys: {', '.join(place.known)}." if len(place.known) <= LISTED_KEYS else ""
    return f"{what}.{near}{listed}"


def _keys_of(field: FieldInfo) -> tuple[str, ...]:
    arguments = _arguments(field)
    if arguments is not None:
        return arguments.keys
    section, _ = _inner(field, ())
    return tuple(section.model_fields) if section else ()


def _without_doubles(expected: list[str]) -> list[str]:
    """Each expectation once; a whole number is a number."""
    return [text for text in dict.fromkeys(expected) if not (text == EXPECTED["int"] and EXPECTED["float"] in expected)]


def _quoted(texts: list[str]) -> list[str]:
    """The words between quotation marks in pydantic's ``'a', 'b' or 'c'``."""
    return [word for text in texts for word in text.split("'")[1::2]]


def _shown(value: Any) -> str:
    if value is None:
        return "null (empty)"
    text = repr(str(value) if hasattr(value, "__fspath__") else value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"
