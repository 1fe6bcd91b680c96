"""`VllmRollout`: vLLM in the training's own process, sampling from the policy that the training has at the moment."""

from __future__ import annotations

import gc
import os
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from afa_lora.core.errors import AfaLoraError
from afa_lora.files import folder_atomic
from afa_lora.grpo.rollout.annealing import OPTION
from afa_lora.grpo.rollout.rules import RolloutError, check_rollout, engine_at
from afa_lora.grpo.rollout.settings import EngineSettings, Sampling
from afa_lora.peft.config import AfaLoraConfig
from afa_lora.peft.linearize import LinearizeReport, linearized
from afa_lora.peft.merging import is_sharded
from afa_lora.serving.vllm import layer_faults, max_lora_rank

Batches = Iterable[Mapping[str, Tensor]]
# No process of its own, no binding of threads to cores that the training computes on, no pages of log.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class SyncReport:
    """What the engine has got.

    Attributes:
        step: the training's, as it was told.
        beta: β of the policy in training.
        linearized: what the linear stand-in loses, where one was sent.
    """

    step: int
    beta: float
    linearized: LinearizeReport | None = None

    def metrics(self) -> dict[str, float]:
        """For the log: β of what samples, and the relative error of the linearised branches."""
        if self.linearized is None:
            return {"afa/rollout_beta": self.beta}
        errors = list(self.linearized.relative_error.values())
        return {
            "afa/rollout_beta": 0.0,
            "afa/linearized_error_median": statistics.median(errors),
            "afa/linearized_error_max": max(errors),
        }


class VllmRollout:
    """Samples completions with vLLM.

    Adapters go to vLLM as files, each under a new id, so that no cache mixes two policies. The training's random
    generators are left as they were.

    Args:
        policy: vllm-wait, vllm-linearized or vllm-exact.
        base: the base model: hub id or local folder.
        config: of the adapter in training; ``None`` if the whole model is trained, whose weights are then copied.
        dtype: of the base weights; take the training's.
        settings: the engine's size.

    Raises:
        RolloutError: the policy cannot be carried out (`check_rollout`), or vLLM does not start; with its words.
        VllmSeamError: the plug-in does not know this vLLM.
    """

    def __init__(
        self,
        policy: str,
        base: str | Path,
        config: LoraConfig | None,
        *,
        dtype: torch.dtype,
        settings: EngineSettings | None = None,
    ) -> None:
        if faults := check_rollout(policy, config):
            raise RolloutError(" ".join(faults))
        if engine_at(policy, 0.0) != "vllm":
            raise RolloutError(f"rollout={policy!r} needs no vLLM.")
        self.policy = policy
        self.settings = settings or EngineSettings()
        self._folder = tempfile.TemporaryDirectory(prefix="afa-rollout-")  # 0700: for this user alone
        self._number = 0
        self._request: Any = None
        self._ready = False  # has a policy been sent?
        self._set_num_threads = torch.set_num_threads  # vLLM for the CPU puts a function that does nothing there
        self._llm: Any = self._start(str(base), config, dtype)

    def _start(self, base: str, config: LoraConfig | None, dtype: torch.dtype) -> Any:
        adapters: dict[str, Any] = {}
        if config is not None:
            adapters = {"enable_lora": True, "max_lora_rank": max_lora_rank(config), "max_loras": 1}
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _same_randomness():
            from vllm import LLM

            if self.policy == "vllm-exact" and isinstance(config, AfaLoraConfig):
                from afa_lora.grpo.rollout.contract import check_seams
                from afa_lora.grpo.rollout.plugin import register

                check_seams()
                register()  # vLLM does it itself, unless VLLM_PLUGINS names others
                adapters["additional_config"] = {
                    OPTION: {"activation": config.activation, "placement": config.placement}
                }
            try:
                return LLM(
                    base,
                    dtype=str(dtype).removeprefix("torch."),
                    max_model_len=self.settings.max_length,
                    max_num_seqs=self.settings.max_sequences,
                    kv_cache_memory_bytes=int(self.settings.cache_gib * 2**30),
                    enforce_eager=not self.settings.compiled,
                    logprobs_mode="processed_logprobs",  # after temperature, top-p, top-k and min-p, as TRL has it
                    **adapters,
                )
            except AfaLoraError:
                raise
            except (ValueError, RuntimeError, OSError) as error:
                raise RolloutError(f"vLLM does not start with {base!r}: {error}") from error

    def serves(self, beta: float) -> bool:
        """Whether it samples at this β; transformers does where it does not."""
        return engine_at(self.policy, beta) == "vllm"

    def sync(self, model: PeftModel | PreTrainedModel, step: int, calibration: Batches | None = None) -> SyncReport:
        """Take over the present policy; the one before is gone.

        Args:
            model: as it is trained, not wrapped. It is left as it is, to the bit.
            step: the training's, for the report.
            calibration: for vllm-linearized at β > 0: batches as `afa_lora.linearize` takes them; the present prompts,
                with completions if there are any.

        Raises:
            RolloutError: this policy cannot send the model; vLLM refuses the adapter.
        """
        if any(is_sharded(parameter) for parameter in model.parameters()):
            raise RolloutError("this model is sharded, and vLLM needs whole weights. Set rollout=transformers.")
        self._ready = False
        if not isinstance(model, PeftModel):
            self._send_weights(model)
            self._ready = True
            return SyncReport(step, 0.0)
        if len(model.active_adapters) != 1:
            raise RolloutError(f"vLLM samples with one adapter, and {model.active_adapters} are active. Activate one.")
        (name,) = model.active_adapters
        config = model.peft_config[name]
        beta = config.beta if isinstance(config, AfaLoraConfig) else 0.0
        if not self.serves(beta):
            raise RolloutError(f"rollout={self.policy!r} samples with transformers until β = 0, and β = {beta:.4g}.")
        if faults := layer_faults(model):
            raise RolloutError(f"vLLM adapts no {faults[0]}. Take it out of target_modules, or use transformers.")
        stand_in: Any = nullcontext()
        if self.policy == "vllm-linearized" and beta > 0.0:
            if calibration is None:
                raise RolloutError("vllm-linearized measures slopes at β > 0: give calibration batches.")
            stand_in = linearized(model, calibration, name)
        folder = Path(self._folder.name) / "adapter"
        with stand_in as report, folder_atomic(folder) as temporary:
            model.save_pretrained(str(temporary), selected_adapters=[name], save_embedding_layers=False)
        self._send_adapter(folder if name == "default" else folder / name, step)
        self._ready = True
        return SyncReport(step, beta, report)

    def _send_adapter(self, folder: Path, step: int) -> None:
        from vllm.lora.request import LoRARequest

        engine = self._llm.llm_engine
        if self._request is not None:
            engine.remove_lora(self._request.lora_int_id)
        self._number += 1
        # Blocks of the prefix cache are found by the name.
        self._request = LoRARequest(f"{self._number}: step {step}", self._number, str(folder))
        try:
            engine.add_lora(self._request)
        except AfaLoraError:
            raise
        except (ValueError, RuntimeError) as error:
            raise RolloutError(f"vLLM refuses the adapter of step {step}: {error}") from error

    def _send_weights(self, model: PreTrainedModel) -> None:
        # Not the model's own load_weights: what vLLM has laid out anew for its kernels no longer takes them.
        weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()

    def generate(
        self,
        prompt_ids: list[list[int]],
        *,
        max_tokens: int,
        seed: int,
        n: int = 1,
        sampling: Sampling | None = None,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample completions.

        Args:
            prompt_ids: token ids of each prompt, not padded.
            max_tokens: the longest completion.
            seed: the same seed draws the same again; each completion draws from a generator of its own.
            n: completions for each prompt.
            sampling: how they are drawn.

        Returns:
            for each prompt its ``n`` completions, one after another: token ids, the end token with them, and the
            log-probabilities of these tokens under the distribution that they were drawn from.

        Raises:
            RolloutError: nothing was synchronised, or prompt and completion do not fit ``max_length``.
        """
        if not self._ready:
            raise RolloutError("vLLM has no policy to sample from: call sync first.")
        longest = max(map(len, prompt_ids), default=0) + max_tokens
        if longest > self.settings.max_length:
            raise RolloutError(
                f"a prompt with its completion may have {longest} tokens, and the engine has room for "
                f"max_length={self.settings.max_length}. Raise that, or lower max_completion_length."
            )
        from vllm import SamplingParams

        drawn = sampling or Sampling()
        parameters = [
            SamplingParams(
                n=n,
                temperature=drawn.temperature,
                top_p=drawn.top_p,
                top_k=drawn.top_k,
                min_p=drawn.min_p,
                stop_token_ids=list(drawn.stop_token_ids),
                max_tokens=max_tokens,
                seed=seed + number * n,  # vLLM adds 0 ... n - 1 for the completions of one prompt
                logprobs=0,  # of the token that was drawn, and no others
                detokenize=False,
            )
            for number in range(len(prompt_ids))
        ]
        prompts = [{"prompt_token_ids": ids} for ids in prompt_ids]
        with _same_randomness():
            answers = self._llm.generate(prompts, parameters, lora_request=self._request, use_tqdm=False)
        completions = [completion for answer in answers for completion in answer.outputs]
        ids = [list(completion.token_ids) for completion in completions]
        drawn_at = [zip(c.token_ids, c.logprobs, strict=True) for c in completions]
        return ids, [[found[token].logprob for token, found in tokens] for tokens in drawn_at]

    def close(self) -> None:
        """Give the engine's memory back, and remove the files."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._ready = None, False
        torch.set_num_threads = self._set_num_threads
        self._folder.cleanup()
        gc.collect()


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leave the process's random generators as they were: vLLM seeds them when it starts."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is what is kept
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
