"""YAML with the scalars of version 1.2, overrides from the command line, and where each key stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from afa_lora.settings.faults import RecipeError


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a YAML file and apply overrides such as ``train.learning_rate=1e-4``.

    Returns:
        the nested settings, and where each dotted key stands (``line 12`` or ``command line``).

    Raises:
        RecipeError: no such file, not UTF-8, no YAML, no keys and values in it, or an override without a value.
    """
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path} (looked for it in {Path.cwd()}).")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}).") from error
    settings = parse_yaml(text, str(path))
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} must hold keys and values, such as 'model: smollm2-135m'.")
    lines = _lines(yaml.compose(text, Loader=_Loader))
    for override in overrides:
        lines[_apply(override, settings)] = "command line"
    return settings, lines


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML; ``origin`` says in messages where it comes from.

    Raises:
        RecipeError: it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is no valid YAML: {error}") from error


def dump_yaml(settings: Any) -> str:
    """Settings as YAML that `parse_yaml` reads back equal."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2 (1e-4 is a number, ``no`` is a word); a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


# The core schema of YAML 1.2 (section 10.3.2); merging with << is of 1.1 and stays.
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?\d+|0o[0-7]+|0x[\da-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$", re.ASCII), _first)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    """PyYAML's own reads 010 as 8 and 1:30 as 90, as YAML 1.1 has it."""
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text, base)
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no integer", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader` would take for something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, str]:
    """The line of every dotted key."""
    lines: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = f"line {key.start_mark.line + 1}"
            lines |= _lines(value, f"{name}.")
    return lines


def _apply(override: str, settings: dict[str, Any]) -> str:
    """Set one ``a.b.c=value`` in nested settings, in place. Returns its dotted key."""
    path, separator, value = override.partition("=")
    if not separator or not path:
        raise RecipeError(f"The override {override!r} must look like train.learning_rate=1e-4.")
    *parents, last = path.split(".")
    section = settings
    for parent in parents:
        inner = section.get(parent)
        if inner is None:  # not there, or a section whose keys are all commented out
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"The override {override!r}: {parent!r} is a value, not a section.")
        section = inner
    section[last] = parse_yaml(value, f"The override {override!r}")
    return path
