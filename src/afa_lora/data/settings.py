"""The base of every section of a recipe: typed keys, unknown ones refused with the closest known one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from afa_lora.core.errors import closest


class Section(BaseModel):
    """A group of settings. An unknown key is an error that names the closest known key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(
                        f"{key!r} is no key here.{closest(str(key), cls.model_fields)} "
                        f"Known keys: {', '.join(cls.model_fields)}."
                    )
        return values
