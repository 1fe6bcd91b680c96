"""The estimate on tensors without data equals a real step: operations, saved bytes, peak memory."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from afa_lora.sft.planning.estimate import StepEstimate, Work, estimate_step, make_batch, measure_work
from afa_lora.sft.planning.shape import optimizer_bytes, quantized_layers, shape_model
from afa_lora.sft.planning.timing import measure_speed
from afa_lora.sft.recipe import parse_recipe
from afa_lora.sft.trainer import training_arguments
from afa_lora.tuning.adapter import add_adapter
from benchmarks.measure import peak_bytes, saved_bytes

BATCH, LENGTH = 4, 32
CONFIG = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
METHODS = ["full", "lora", "dora", "afa-lora", "afa-dora"]


def recipe_of(method: str = "afa-lora", load: dict[str, Any] | None = None, **train: Any) -> Any:
    return parse_recipe(
        {
            "model": "anything",
            "method": method,
            "output": "nowhere",
            "data": {"source": "reasoning-gym", "task": "chain_sum"},
            "adapter": {} if method == "full" else {"r": 4},
            "load": load or {},
            "train": {"per_device_train_batch_size": BATCH, **train},
        }
    )


def estimated(recipe: Any) -> StepEstimate:
    args = training_arguments(recipe)
    return estimate_step(recipe, args, shape_model(recipe, args, LlamaConfig(**CONFIG)), LENGTH)


def real(recipe: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The same training with weights, set up by hand."""
    base = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG), dtype=dtype)
    model = base if recipe.method == "full" else add_adapter(base, recipe)
    if recipe.train.get("gradient_checkpointing", True):
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    return model.train()


def loss_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    output = model(**inputs, fused_lm_head=True)
    loss: torch.Tensor = -output.log_probs.sum() / output.label_mask.sum()
    return loss


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_work_without_data_is_that_of_a_real_step(method: str, checkpointing: bool) -> None:
    recipe = recipe_of(method, gradient_checkpointing=checkpointing)
    model, inputs = real(recipe), make_batch(BATCH, LENGTH, masked=True)
    work = estimated(recipe).work

    counted = measure_work(model, inputs, torch.float32)
    assert (work.flops, work.saved, work.logits) == (counted.flops, counted.saved, counted.logits)
    assert work.peak == pytest.approx(counted.peak, rel=1e-2)  # AFA-DoRA keeps ‖W₀‖² from the first step on
    assert sum(p.flops * n for p, n in work.products.items()) == sum(p.flops * n for p, n in counted.products.items())
    assert work.moved == pytest.approx(counted.moved, rel=0.05)

    # Against other instruments: torch's own counter, the benchmark's hooks, the profiler's allocations.
    model.zero_grad()
    with FlopCounterMode(display=False) as counter:
        loss_of(model, inputs).backward()
    attention = work.flops - sum(p.flops * n for p, n in work.products.items())
    assert counter.get_total_flops() + attention == work.flops
    model.zero_grad()
    resident = [*model.parameters(), *model.buffers(), *inputs.values()]
    assert saved_bytes(lambda: loss_of(model, inputs), resident) == work.saved
    peak = peak_bytes(lambda: loss_of(model, inputs).backward(), torch.device("cpu"))
    assert work.peak == pytest.approx(peak, rel=0.02)


def test_attention_is_counted_by_its_two_and_five_products() -> None:
    work = estimated(recipe_of("lora", gradient_checkpointing=False)).work
    attention = work.flops - sum(p.flops * n for p, n in work.products.items())
    product = 2 * BATCH * CONFIG["hidden_size"] * LENGTH**2  # all heads
    assert attention == CONFIG["num_hidden_layers"] * (2 + 5) * product


def test_autocast_is_part_of_the_estimate() -> None:
    recipe = recipe_of(load={"dtype": "bfloat16"}, gradient_checkpointing=False)
    model, inputs = real(recipe, torch.bfloat16), make_batch(BATCH, LENGTH, masked=True)
    work = estimated(recipe).work
    counted = measure_work(model, inputs, torch.bfloat16)
    assert (work.flops, work.saved) == (counted.flops, counted.saved)
    assert work.saved < estimated(recipe_of(gradient_checkpointing=False)).work.saved


def test_a_single_sequence_needs_no_mask() -> None:
    recipe = recipe_of(gradient_checkpointing=False, per_device_train_batch_size=1)
    counted = measure_work(real(recipe), make_batch(1, LENGTH, masked=False), torch.float32)
    work = estimated(recipe).work
    assert (work.flops, work.saved) == (counted.flops, counted.saved)


def test_accumulated_gradients_are_held_over_the_whole_step() -> None:
    once = estimated(recipe_of("full", gradient_checkpointing=False))
    often = estimated(recipe_of("full", gradient_checkpointing=False, gradient_accumulation_steps=4))
    assert once.gradients == often.gradients
    assert once.work.peak < often.work.peak <= once.work.peak + once.gradients + often.work.logits


def test_memory_by_part() -> None:
    recipe = recipe_of()
    model, estimate = real(recipe), estimated(recipe)
    adapter = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    base = sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert (estimate.adapter, estimate.gradients, estimate.optimizer) == (adapter, adapter, 2 * adapter)
    assert estimate.weights == base + buffers
    assert estimate.total == base + buffers + 3 * adapter + estimate.work.peak
    full = estimated(recipe_of("full"))
    assert (full.adapter, full.optimizer) == (0, 2 * base)


@pytest.mark.parametrize(
    ("name", "size", "known"),
    [
        ("adamw_torch_fused", 2 * 4 * 5096, True),
        ("sgd", 0, True),
        ("paged_adamw_32bit", 2 * 4 * 5096, True),
        ("adamw_8bit", 2 * (4096 + 4 * 16 + 4 * 1000), True),
        ("paged_adamw_8bit", 2 * (4096 + 4 * 16 + 4 * 1000), True),
        ("lion_32bit", 4 * 5096, True),
        ("grokadamw", 2 * 4 * 5096, False),
    ],
)
def test_optimizer_states(name: str, size: int, known: bool) -> None:
    assert optimizer_bytes(name, [torch.zeros(4096), torch.zeros(1000)]) == (size, known)


def test_adamw_really_keeps_that_much() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = sum(t.nbytes for t in optimizer.state[weight].values() if t.shape == weight.shape)
    assert optimizer_bytes("adamw_torch", [weight]) == (kept, True)


def test_speed_is_measured_and_makes_seconds() -> None:
    work: Work = estimated(recipe_of("lora")).work
    speed = measure_speed(work, "cpu")
    assert speed.seconds == pytest.approx(work.flops / speed.flops + work.moved / speed.bandwidth)
    assert speed.seconds > 0
    assert "cpu" in str(speed)


def test_the_output_layer_is_not_quantised() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG, tie_word_embeddings=False))
    layers = quantized_layers(model)
    assert len(layers) == 7 * CONFIG["num_hidden_layers"]
    assert model.lm_head not in layers
