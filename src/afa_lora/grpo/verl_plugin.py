"""AFA-LoRA and AFA-DoRA in verl: ``actor_rollout_ref.model.external_lib=afa_lora.grpo.verl_plugin``.

Importing this module puts `AfaFSDPEngine` in the place of verl's FSDP engine for language models. It is that engine,
unchanged, unless the model has settings under ``actor_rollout_ref.model.lora.afa`` (`AfaSettings` lists them):

    actor_rollout_ref.actor.strategy=fsdp2
    actor_rollout_ref.model.lora_rank=64 actor_rollout_ref.model.lora_alpha=32 actor_rollout_ref.model.lora.merge=True
    actor_rollout_ref.model.external_lib=afa_lora.grpo.verl_plugin +actor_rollout_ref.model.lora.afa.activation=relu
    algorithm.rollout_correction.rollout_is=token
"""

from __future__ import annotations

import os

from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine.base import EngineRegistry

from afa_lora.grpo.verl.engine import AfaFSDPEngine
from afa_lora.grpo.verl.settings import AfaSettings

__all__ = ["AfaFSDPEngine", "AfaSettings"]

# verl looks for an engine of device and vendor first, for one of the device alone (where its own is) second.
EngineRegistry.register(
    model_type="language_model",
    backend=["fsdp", "fsdp2"],
    device=os.getenv("VERL_ENGINE_DEVICE") or get_device_name(),
    vendor=os.getenv("VERL_ENGINE_VENDOR") or get_vendor(),
)(AfaFSDPEngine)
