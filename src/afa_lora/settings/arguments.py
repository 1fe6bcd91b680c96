"""A section whose keys are the arguments of someone else's dataclass, such as TRL's `SFTConfig`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, with_config
from pydantic_core import CoreSchema
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12


@dataclass(frozen=True)
class Arguments:
    """Makes a ``dict`` such a section: ``Annotated[dict[str, Any], Arguments(SFTConfig, "trl.SFTConfig", {})]``.

    Names and types are checked; what comes out is a plain dict with the given keys alone.

    Attributes:
        of: the dataclass.
        name: what messages call it.
        set_elsewhere: arguments that are not given here, and what sets them.
        types: the types of arguments that take more than the dataclass says.
    """

    of: type
    name: str
    set_elsewhere: Mapping[str, str]
    types: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The arguments that can be given."""
        return tuple(argument.name for argument in self._arguments)

    @property
    def _arguments(self) -> list[dataclasses.Field[Any]]:
        return [f for f in dataclasses.fields(self.of) if f.init and f.name not in self.set_elsewhere]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        hints = {**typing.get_type_hints(self.of), **self.types}
        fields = {a.name: _described(_plain(hints[a.name]), a) for a in self._arguments}
        section = TypedDict(self.of.__name__, fields, total=False)  # type: ignore[misc]
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        return handler.generate_schema(with_config(config)(section))


def _plain(hint: Any) -> Any:
    """The type as it is written in YAML: an enum by its values, and an integer stays one where a float is meant."""
    if hint is float:
        return int | float
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)]
    if get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = get_args(hint)
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
        members = tuple(member for member in members if member is not str)  # any text would do otherwise
    return typing.Union[tuple(_plain(member) for member in members)]  # noqa: UP007 - made at run time


def _described(type_: Any, argument: dataclasses.Field[Any]) -> Any:
    description = argument.metadata.get("help")
    return Annotated[type_, Field(description=description)] if description else type_
