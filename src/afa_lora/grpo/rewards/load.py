"""Reward functions by name: built in, or the user's own as ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afa_lora.core.errors import AfaLoraError, InvalidSettingError, closest
from afa_lora.grpo.rewards.checked import RewardFunction, checked
from afa_lora.grpo.rewards.form import format_reward
from afa_lora.grpo.rewards.gsm8k import gsm8k_reward
from afa_lora.grpo.rewards.mathematics import math_reward
from afa_lora.grpo.rewards.task import task_reward

BUILT_IN: dict[str, RewardFunction] = {
    "task": task_reward,
    "gsm8k": gsm8k_reward,
    "math": math_reward,
    "format": format_reward,
}
GIVEN = ("prompts", "completions", "completion_ids", "answer", "entry", "trainer_state", "log_extra", "log_metric")
"""What the trainer passes; no option may have such a name."""


def load_reward(name: str, options: Mapping[str, Any] | None = None) -> RewardFunction:
    """Find a reward function, give it its options, and let it be `checked`.

    Args:
        name: a key of `BUILT_IN`, or ``module:function``: a module that is installed, or in the working folder.
        options: keyword arguments for each call.

    Returns:
        The function, async if yours is; its ``__name__`` is ``name``, and so TRL logs it.

    Raises:
        InvalidSettingError: no such name, module or function, a module that cannot be imported, an option that the
            function does not have, or a value that a built-in one refuses.
    """
    options = dict(options or {})
    if ":" in name:
        function = _import(name)
    elif name in BUILT_IN:
        function = BUILT_IN[name]
    else:
        raise InvalidSettingError(
            f"rewards: {name!r} is no reward function.{closest(name, BUILT_IN)} Built in are {', '.join(BUILT_IN)}; "
            "your own is module:function, a file in the working folder or an installed module."
        )
    _check_options(function, name, options)
    if name in BUILT_IN:
        try:  # on nothing, so that the values of options are refused now and not in the first step
            function(prompts=[], completions=[], answer=[], entry=[], **options)
        except AfaLoraError as error:
            raise InvalidSettingError(f"rewards: {name}: {error}") from error
    return checked(function, name, options)


def _import(name: str) -> RewardFunction:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file here hides no installed module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        raise InvalidSettingError(_not_imported(name, module_name, error)) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InvalidSettingError(
            f"rewards: {name!r}: the module {module_name} ({getattr(module, '__file__', None)}) has no function "
            f"{attribute!r}.{closest(attribute, own)} It has: {', '.join(own) or 'none'}."
        )
    found: RewardFunction = function
    return found


def _not_imported(name: str, module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        files = [path.stem for path in Path.cwd().glob("*.py")]
        return (
            f"rewards: {name!r}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}."
            f"{closest(module, files)}"
        )
    return f"rewards: {name!r}: the module {module} cannot be imported: {type(error).__name__}: {error}."


def _check_options(function: RewardFunction, name: str, options: Mapping[str, Any]) -> None:
    for key in options:
        if key in GIVEN:
            raise InvalidSettingError(f"rewards: {name}: {key!r} is passed by the trainer, it can be no option.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:  # some functions written in C
        raise InvalidSettingError(f"rewards: {name}: {error}. Wrap it in a function of your own.") from error
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not open_ended:
        raise InvalidSettingError(
            f"rewards: {name} must take every column of the data and more from the trainer, as "
            "(prompts, completions, **columns): it has no ** parameter."
        )
    own = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in GIVEN]
    for key in options:
        if key not in own:
            raise InvalidSettingError(
                f"rewards: {name} has no option {key!r}.{closest(key, own)} It has: {', '.join(own) or 'none'}."
            )
