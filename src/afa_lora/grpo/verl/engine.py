"""verl's FSDP2 engine with an annealed adapter: where β is set, and what the rollout is sent."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType, get_peft_model
from tensordict import TensorDict
from torch import Tensor
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fsdp_utils import load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
from verl.utils.model import convert_weight_keys
from verl.utils.py_functional import convert_to_regular_types
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from afa_lora.core.errors import InvalidSettingError, NotLinearError
from afa_lora.grpo.verl.export import adapter_is_zero, merged_weights, save_adapter
from afa_lora.grpo.verl.probe import Probe
from afa_lora.grpo.verl.settings import KEY, AfaSettings, read_settings
from afa_lora.peft.config import AfaLoraConfig
from afa_lora.peft.linearize import LinearizeReport, linearized
from afa_lora.peft.model import anneal_states

ADAPTER_FOLDER = "afa_adapter"


class AfaFSDPEngine(FSDPEngineWithLMHead):
    """verl's engine where the model configuration has no ``lora.afa``; with it, LoRA or DoRA with an activation.

    β is a pure function of the learning-rate scheduler's ``last_epoch``, and changes only when verl steps the
    scheduler: after the last update of a rollout batch, before the weights are sent. So generation, old
    log-probabilities and all mini-batches of a rollout see one β. The rollout is sent merged weights: of the policy at
    β = 0, of the nearest linear adapter before.

    Raises:
        InvalidSettingError: settings that do not go together, at construction.
    """

    def __init__(self, model_config: Any, engine_config: Any, optimizer_config: Any, checkpoint_config: Any) -> None:
        self.afa: AfaSettings | None = read_settings(model_config.lora)
        if self.afa is not None:
            _refuse_unsupported(model_config, engine_config, optimizer_config, checkpoint_config)
            self.probe = Probe(self.afa.probe_tokens)
        self.linearization: LinearizeReport | None = None  # of the latest weight synchronisation at β > 0
        super().__init__(model_config, engine_config, optimizer_config, checkpoint_config)

    # Building

    def _build_lora_module(self, module: Any) -> torch.nn.Module:
        if self.afa is None:
            return super()._build_lora_module(module)
        module.enable_input_require_grads()
        config = AfaLoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=self.model_config.lora_rank,
            lora_alpha=self.model_config.lora_alpha,
            target_modules=convert_to_regular_types(self.model_config.target_modules),
            target_parameters=convert_to_regular_types(self.model_config.target_parameters),
            exclude_modules=convert_to_regular_types(self.model_config.exclude_modules),
            bias="none",
            **self.afa.adapter,
        )
        adapted = get_peft_model(module, config)
        base_dtype = next(p.dtype for p in adapted.parameters() if not p.requires_grad)
        for parameter in adapted.parameters():  # FSDP2 wants one type in what it gathers together
            parameter.data = parameter.data.to(base_dtype)
        return adapted

    def initialize(self) -> None:
        super().initialize()
        if self.afa is not None and not self.engine_config.forward_only:
            self._anneal()

    # β

    @property
    def beta(self) -> float:
        """The present β; 0 without an annealed adapter."""
        return next((state.beta for state in anneal_states(self.module).values()), 0.0)

    def _anneal(self) -> None:
        """Set β, # Algorithm 1, from where the learning-rate scheduler stands."""
        assert self.afa is not None
        step = self.afa.clock(self.lr_scheduler.last_epoch)
        for state in anneal_states(self.module).values():
            state.set_step(step, self.optimizer_config.total_training_steps)

    def lr_scheduler_step(self) -> float:
        lr: float = super().lr_scheduler_step()
        if self.afa is not None:
            self._anneal()
        return lr

    # Training

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        if self.afa is not None and self.mode == "train":
            self.probe.keep(inputs)
        return inputs, output_args

    def train_batch(self, data: TensorDict, loss_function: Callable[..., Any]) -> Any:
        if self.afa is None:
            return super().train_batch(data, loss_function)
        self._require_importance_weights(data)
        beta = self.beta
        outputs = super().train_batch(data, loss_function)
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"]["afa/beta"] = [beta]
            if beta > 0 and self.linearization is not None:
                errors = self.linearization.relative_error.values()
                outputs["metrics"]["afa/linearized_error_median"] = [statistics.median(errors)]
                outputs["metrics"]["afa/linearized_error_max"] = [max(errors)]
        return outputs

    def _require_importance_weights(self, data: TensorDict) -> None:
        """At β > 0 the rollout is another policy than the one trained: an update that ignores it is biased."""
        assert self.afa is not None
        off_policy = self.beta > 0 and "old_log_probs" in data.keys()  # noqa: SIM118  (a TensorDict iterates over rows)
        if off_policy and self.afa.require_importance_weights and "rollout_is_weights" not in data.keys():  # noqa: SIM118
            raise NotLinearError(
                f"the rollout was sampled from linearised weights (β = {self.beta:.4g}), and the batch has no "
                "rollout_is_weights to correct for it. Set algorithm.rollout_correction.rollout_is=token and "
                "actor_rollout_ref.rollout.calculate_log_probs=True; with a loss that corrects by itself (bypass_mode) "
                f"set +{KEY}.require_importance_weights=false."
            )

    # The rollout

    def get_per_tensor_param(
        self, layered_summon: bool = False, base_sync_done: bool = False, **kwargs: Any
    ) -> tuple[Iterator[tuple[str, Tensor]], dict[str, Any] | None]:
        if self.afa is None:
            return super().get_per_tensor_param(layered_summon=layered_summon, base_sync_done=base_sync_done, **kwargs)
        return self._merged_weights(), None

    def get_per_tensor_param_shard(self, **kwargs: Any) -> tuple[Iterator[Any], dict[str, Any] | None]:
        if self.afa is None:
            return super().get_per_tensor_param_shard(**kwargs)
        raise NotLinearError(
            "a checkpoint engine that sends shards (delta_sharded) would send base weights without the adapter. Set "
            "actor_rollout_ref.rollout.checkpoint_engine.backend to one that sends whole tensors, for example naive."
        )

    def _merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        if not self._uses_fsdp2_cpu_offload_policy:
            load_fsdp_model_to_gpu(self.module)
        try:
            with self._made_linear() as merge:
                for name, tensor in merged_weights(self.module, self._autocast_dtype, get_device_id(), merge):
                    yield from convert_weight_keys({name: tensor}, self.module).items()
        finally:
            if self._is_offload_param:
                offload_fsdp_model_to_cpu(self.module)

    @contextmanager
    def _made_linear(self) -> Iterator[bool]:
        """Within, the adapter can be merged; yields whether there is something to merge."""
        if self.beta == 0:
            yield True
        elif self.probe.inputs:
            with ExitStack() as stack:
                with self._autocast():
                    batch = self.probe.batch(torch.device(get_device_id()))
                    self.linearization = stack.enter_context(linearized(self.module, [batch]))
                yield True
        elif adapter_is_zero(self.module):
            yield False
        else:
            raise NotLinearError(
                f"β = {self.beta:.4g}, and nothing has been trained on in this run, so there are no activations to "
                "measure the linearisation on. Resume from a checkpoint that this engine wrote whole."
            )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(get_device_name(), self._autocast_dtype)

    # Checkpoints

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """As verl's; with the adapter in PEFT's form, and what the next weight synchronisation measures on."""
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.afa is None:
            return
        assert isinstance(self.module, PeftModel)
        save_adapter(self.module, Path(local_path) / ADAPTER_FOLDER, get_device_id())
        if self.probe.inputs:
            self.probe.save(self._probe_file(local_path))
        torch.distributed.barrier()

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """As verl's; β follows from the scheduler's state."""
        super().load_checkpoint(local_path, *args, **kwargs)
        if self.afa is None:
            return
        self._anneal()
        if (path := self._probe_file(local_path)).is_file():
            self.probe.load(path)

    def _probe_file(self, folder: str) -> Path:
        return Path(folder) / f"afa_probe_rank_{self.rank}.safetensors"


def _refuse_unsupported(model: Any, engine: Any, optimizer: Any, checkpoint: Any) -> None:
    """Raise `InvalidSettingError` for what would train or send something else than the user means."""
    if engine.strategy != "fsdp2":
        raise InvalidSettingError(
            f"actor_rollout_ref.actor.strategy={engine.strategy!r}: AFA adapters need fsdp2 (FSDP1 flattens A, B and "
            "the base weights into one tensor). Set it to fsdp2."
        )
    if model.lora_rank < 1:
        raise InvalidSettingError(f"{KEY} is set and lora_rank={model.lora_rank}: set a rank, or leave out {KEY}.")
    if not model.lora.get("merge", False):
        raise InvalidSettingError(
            "actor_rollout_ref.model.lora.merge=False would send A and B to an engine that applies them without the "
            "activation. Set it to True: the rollout then gets merged weights."
        )
    if model.lora_adapter_path is not None:
        raise InvalidSettingError(
            f"lora_adapter_path={model.lora_adapter_path!r} together with {KEY}: continue an annealed adapter from "
            "verl's checkpoint (trainer.resume_mode), or merge the adapter into the base model first."
        )
    if engine.ulysses_sequence_parallel_size > 1:
        raise InvalidSettingError(
            f"ulysses_sequence_parallel_size={engine.ulysses_sequence_parallel_size}: the linearisation runs whole "
            "sequences through the model. Set it to 1."
        )
    if engine.qat.enable:
        raise InvalidSettingError("fsdp_config.qat.enable=True replaces the linear layers. Leave it off.")
    if engine.forward_only:
        return
    if optimizer.total_training_steps < 1:
        raise InvalidSettingError(
            f"actor.optim.total_training_steps={optimizer.total_training_steps}: the annealing is a share of it. "
            "verl's trainer sets it; without the trainer set it yourself."
        )
    if "extra" not in checkpoint.load_contents:
        raise InvalidSettingError(
            f"actor.checkpoint.load_contents={list(checkpoint.load_contents)} lacks 'extra', which holds the "
            "scheduler's step; a resumed run would anneal from the beginning. Add it."
        )
