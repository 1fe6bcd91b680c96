"""Run by torchrun on two ranks: verl's worker and engine with real updates, weight synchronisations, checkpoints.

verl_cpu comes first: it gives verl its platform before anything asks for one.
"""

import verl_cpu  # noqa: F401, I001
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.padding import no_padding_2_padding
from verl_tiny import MINI_BATCHES, PROMPT, TOTAL_STEPS, base_model, rollout_batch, tiny_config, tokens

from afa_lora import AfaLoraConfig, InvalidSettingError, NotLinearError, Schedule, linearize, load_adapter, set_beta
from afa_lora.grpo.verl_plugin import AfaFSDPEngine

SCHEDULE = Schedule("linear", 0.0, 4)


@dataclass
class Run:
    """One actor worker as verl's trainer drives it."""

    worker: ActorRolloutRefWorker

    @property
    def engine(self) -> AfaFSDPEngine:
        engine = self.worker.actor.engine
        assert isinstance(engine, AfaFSDPEngine)
        return engine

    def log_probs(self, seed: int) -> Tensor:
        """Of the responses under the policy, (rows, response)."""
        data = rollout_batch(seed)
        tu.assign_non_tensor(data, compute_loss=False)
        output = self.worker.compute_log_prob(data)
        return no_padding_2_padding(output["log_probs"], rollout_batch(seed)) * data["response_mask"]

    def rollout_step(self, step: int, weights: bool = True) -> dict[str, list[float]]:
        """Old log-probabilities, then all updates of one rollout batch. Returns verl's metrics."""
        seed = my_seed(step)
        data = rollout_batch(seed, self.log_probs(seed), weights)
        tu.assign_non_tensor(data, mini_batch_size=len(data) // MINI_BATCHES * dist.get_world_size(), epochs=1, seed=1)
        output: TensorDict = self.worker.update_actor(data)
        return tu.get(output, "metrics")

    def synchronise(self) -> dict[str, Tensor]:
        """What the rollout is sent; asserts that sending changes nothing."""
        before, beta = whole(self.engine.module), self.engine.beta
        tensors, peft_config = self.engine.get_per_tensor_param(layered_summon=False, base_sync_done=True)
        sent = dict(tensors)
        assert peft_config is None
        assert same(whole(self.engine.module), before)
        assert self.engine.beta == beta
        return sent


def my_seed(step: int) -> int:
    return 10 * step + dist.get_rank()


def whole(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.full_tensor().clone() for key, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert one.keys() == two.keys()
    return all((one[key] - two[key]).abs().max() <= tolerance for key in one)


def start(folder: Path, arm: str, *overrides: str) -> Run:
    worker = ActorRolloutRefWorker(config=tiny_config(folder / "model", arm, *overrides), role="actor")
    worker.init_model()
    return Run(worker)


def in_one_process(run: Run, adapter: dict[str, object]) -> nn.Module:
    """The present policy as an unsharded `PeftModel`."""
    model = get_peft_model(base_model(), AfaLoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **adapter))
    model.load_state_dict(whole(run.engine.module))
    set_beta(model, run.engine.beta)
    return model.eval()


def linearised_in_one_process(run: Run, adapter: dict[str, object]) -> dict[str, Tensor]:
    """What `linearize` makes of the policy from the tokens that all ranks measure on."""
    batches = [None] * dist.get_world_size()
    dist.all_gather_object(batches, run.engine.probe.batch(torch.device("cpu")))
    model = in_one_process(run, adapter)
    linearize(model, batches)
    return model.merge_and_unload().state_dict()


def of_plain_model(state: dict[str, Tensor], seed: int) -> Tensor:
    """Log-probabilities of the responses under a model that has nothing but ``state``."""
    model = base_model()
    model.load_state_dict(state)
    return response_log_probs(model, seed)


@torch.no_grad()
def response_log_probs(model: nn.Module, seed: int) -> Tensor:
    ids, mask = tokens(seed)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return chosen[:, PROMPT - 1 :] * mask[:, PROMPT:]


def anneal_and_resume(folder: Path, arm: str, adapter: dict[str, object], *overrides: str) -> None:
    run = start(folder, arm, *overrides)
    assert all(isinstance(parameter, DTensor) for parameter in run.engine.module.parameters())  # FSDP2, not DDP
    assert run.engine.beta == 1.0
    assert same(run.synchronise(), base_model().state_dict())  # B is zero: the base model, to the bit
    saved = folder / f"checkpoint-{arm}"
    sent: dict[str, Tensor] = {}
    for step in range(TOTAL_STEPS):
        beta = SCHEDULE.beta(step, TOTAL_STEPS)
        metrics = run.rollout_step(step)
        assert metrics["afa/beta"] == [beta] * len(metrics["afa/beta"])
        assert len(metrics["afa/beta"]) == MINI_BATCHES * dist.get_world_size()
        assert run.engine.beta == SCHEDULE.beta(step + 1, TOTAL_STEPS)
        sent = run.synchronise()
        if run.engine.beta > 0:
            assert same(sent, linearised_in_one_process(run, adapter), 2e-5)
            assert run.engine.linearization is not None
        if step == 1:
            run.worker.save_checkpoint(str(saved), global_step=step)
            at_checkpoint, log_probs = sent, run.log_probs(7)
            lost = (of_plain_model(sent, 7) - log_probs).abs().max()
            assert lost > 1e-3  # the linearised policy is another one: what the importance weights are for
        if step == 2:
            after_next = whole(run.engine.module)
    assert run.engine.beta == 0.0
    assert not same(sent, base_model().state_dict(), 1e-2)  # it has learnt
    assert (of_plain_model(sent, 7) - run.log_probs(7)).abs().max() < 2e-5  # the very policy
    run.worker.save_checkpoint(str(folder / f"last-{arm}"), global_step=TOTAL_STEPS)

    resumed = start(folder, arm, *overrides)
    resumed.worker.load_checkpoint(str(saved))
    assert resumed.engine.beta == SCHEDULE.beta(2, TOTAL_STEPS)
    assert torch.equal(resumed.log_probs(7), log_probs)
    assert same(resumed.synchronise(), at_checkpoint)
    resumed.rollout_step(2)
    assert same(whole(resumed.engine.module), after_next)

    loaded = load_adapter(base_model(), saved / "afa_adapter").eval()
    assert loaded.peft_config["default"].beta == SCHEDULE.beta(2, TOTAL_STEPS)
    assert (response_log_probs(loaded, 7) - log_probs).abs().max() < 2e-5


def as_on_a_gpu(folder: Path) -> None:
    """verl's own choice of types, bfloat16 over float32 parameters, with parameters offloaded between its phases."""
    mixed = "+actor_rollout_ref.actor.fsdp_config.mixed_precision"
    types = [f"{mixed}.param_dtype=bf16", f"{mixed}.reduce_dtype=fp32"]
    offload = "actor_rollout_ref.actor.fsdp_config.param_offload=True"
    run = start(folder, "A-s-B", *(key.removeprefix("+") for key in types), offload)
    for step in range(TOTAL_STEPS):
        run.rollout_step(step)
        sent = run.synchronise()
        assert all(tensor.dtype == torch.bfloat16 for tensor in sent.values())
        if run.engine.beta > 0:
            expected = linearised_in_one_process(run, {"activation": "relu"})
            assert same({key: tensor.float() for key, tensor in sent.items()}, expected, 0.02)
    merged = in_one_process(run, {"activation": "relu"}).merge_and_unload().state_dict()
    assert same(sent, {key: tensor.bfloat16() for key, tensor in merged.items()}, 1e-2)


def disabled_adapter_is_the_reference(folder: Path) -> None:
    run = start(folder, "A-s-B")
    run.rollout_step(0)
    data = rollout_batch(7)
    tu.assign_non_tensor(data, compute_loss=False, no_lora_adapter=True)
    found = no_padding_2_padding(run.worker.compute_log_prob(data)["log_probs"], rollout_batch(7))
    assert (found * data["response_mask"] - response_log_probs(base_model(), 7)).abs().max() < 2e-5
    assert not torch.equal(found * data["response_mask"], run.log_probs(7))


def held_between_synchronisations(folder: Path) -> None:
    """With ``parameter_sync_step`` = 2 the scheduler steps twice for one rollout."""
    run = start(folder, "A-s-B", "+actor_rollout_ref.model.lora.afa.hold_steps=2")
    betas = []
    for step in range(TOTAL_STEPS):
        betas += run.rollout_step(step)["afa/beta"][:1]
    assert betas == [SCHEDULE.beta(step - step % 2, TOTAL_STEPS) for step in range(TOTAL_STEPS)]


def what_would_be_wrong_is_refused(folder: Path) -> None:
    run = start(folder, "A-s-B")
    with pytest.raises(NotLinearError, match=r"rollout_correction\.rollout_is=token"):
        run.rollout_step(0, weights=False)
    with pytest.raises(NotLinearError, match="delta_sharded"):
        run.engine.get_per_tensor_param_shard()
    run.rollout_step(0)
    run.engine.probe.inputs = {}
    with pytest.raises(NotLinearError, match="no activations"):
        run.synchronise()
    for override, message in {
        "actor_rollout_ref.model.lora.merge=False": "lora.merge=False",
        "actor_rollout_ref.actor.strategy=fsdp": "need fsdp2",
        "actor_rollout_ref.model.lora_rank=0": "set a rank",
        "actor_rollout_ref.model.lora_adapter_path=/nowhere": "lora_adapter_path",
        "actor_rollout_ref.actor.checkpoint.load_contents=[model]": "'extra'",
        "actor_rollout_ref.actor.optim.total_training_steps=-1": "total_training_steps=-1",
        "+actor_rollout_ref.model.lora.afa.anneal=3": "Did you mean",
    }.items():
        with pytest.raises(InvalidSettingError, match=message):
            start(folder, "A-s-B", override)


def without_settings_it_is_verls_own(folder: Path) -> None:
    run = start(folder, "lora", "actor_rollout_ref.model.external_lib=afa_lora.grpo.verl_plugin")
    assert run.engine.afa is None
    layers = [module for module in run.engine.module.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert not any(layer.lora_variant for layer in layers)
    assert "afa/beta" not in run.rollout_step(0, weights=False)


CASES: dict[str, Callable[[Path], None]] = {
    "lora": lambda folder: anneal_and_resume(folder, "A-s-B", {"activation": "relu", "placement": "A-σ-B"}),
    "dora, σ outside, packed": lambda folder: anneal_and_resume(
        folder,
        "s-A-B-s",
        {"activation": "silu", "placement": "σ-A-B-σ", "use_dora": True},
        "+actor_rollout_ref.model.lora.afa.use_dora=true",
        "actor_rollout_ref.model.lora.afa.activation=silu",
        "actor_rollout_ref.model.use_remove_padding=True",
    ),
    "bfloat16": as_on_a_gpu,
    "reference": disabled_adapter_is_the_reference,
    "held": held_between_synchronisations,
    "refused": what_would_be_wrong_is_refused,
    "verl's own": without_settings_it_is_verls_own,
}

if __name__ == "__main__":
    dist.init_process_group("gloo")  # verl's own start names the backend for the CPU twice, which torch refuses
    for case in sys.argv[2:] or CASES:
        print(f"case: {case}", flush=True)
        CASES[case](Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
