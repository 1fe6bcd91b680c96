"""LoRA and DoRA fine-tuning with an annealed activation: AFA-LoRA (arXiv 2512.22455), a drop-in for Hugging Face PEFT.

Importing this package registers `AfaLoraConfig` with PEFT.
"""

from afa_lora import peft as _registers_with_peft  # noqa: F401
from afa_lora.core.activation import register_activation
from afa_lora.core.errors import (
    AfaLoraError,
    CorruptedAdapterError,
    InvalidSettingError,
    NotLinearError,
    UnsupportedLayerError,
)
from afa_lora.core.schedule import Schedule
from afa_lora.peft.checkpoint import load_adapter
from afa_lora.peft.config import AfaLoraConfig
from afa_lora.peft.linearize import LinearizeReport, linearize
from afa_lora.peft.merge import MergeReport, merge
from afa_lora.peft.model import anneal_states, set_beta
from afa_lora.training.annealer import Annealer
from afa_lora.training.callback import AnnealingCallback

__version__ = "0.1.0"

__all__ = [
    "AfaLoraConfig",
    "AfaLoraError",
    "Annealer",
    "AnnealingCallback",
    "CorruptedAdapterError",
    "InvalidSettingError",
    "LinearizeReport",
    "MergeReport",
    "NotLinearError",
    "Schedule",
    "UnsupportedLayerError",
    "anneal_states",
    "linearize",
    "load_adapter",
    "merge",
    "register_activation",
    "set_beta",
]
