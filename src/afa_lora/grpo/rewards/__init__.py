"""Reward functions in TRL's form: one number, or None where it does not apply, for each completion.

`gsm8k_reward`, `math_reward`, `format_reward` and `task_reward` are built in; `load_reward` finds these by name and
yours by ``module:function``, and checks what they return.
"""

from afa_lora.grpo.rewards.checked import RewardError, RewardFunction, checked
from afa_lora.grpo.rewards.form import format_reward
from afa_lora.grpo.rewards.groups import equal_groups
from afa_lora.grpo.rewards.gsm8k import gsm8k_reward
from afa_lora.grpo.rewards.load import BUILT_IN, load_reward
from afa_lora.grpo.rewards.mathematics import math_reward
from afa_lora.grpo.rewards.task import task_reward

__all__ = [
    "BUILT_IN",
    "RewardError",
    "RewardFunction",
    "checked",
    "equal_groups",
    "format_reward",
    "gsm8k_reward",
    "load_reward",
    "math_reward",
    "task_reward",
]
