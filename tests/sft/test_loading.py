"""Precision, quantisation and what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from afa_lora.models import ModelError
from afa_lora.settings import RecipeError
from afa_lora.sft.planning.shape import shape_model
from afa_lora.sft.recipe import parse_recipe
from afa_lora.sft.run import run_sft
from afa_lora.sft.trainer import training_arguments
from afa_lora.tuning import loading
from afa_lora.tuning.loading import load_base, precision_flags, training_precision
from tests.tiny_chat import save_tiny_chat_model, without_chat_template

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="tests what a machine without a GPU does")
BFLOAT16 = {"bf16": True, "fp16": False, "use_cpu": True}
FLOAT32 = {"bf16": False, "fp16": False}


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU kernels of bitsandbytes need rows of at least one block, 64 numbers."""
    return save_tiny_chat_model(tmp_path_factory.mktemp("wide"), hidden=64)


def quantised(settings: dict[str, Any], bits: str, **changes: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    return parse_recipe({**settings, "load": {"quantization": bits}, **changes})


@pytest.mark.parametrize(
    ("load", "train", "weights", "flags"),
    [
        ({}, {}, torch.float32, FLOAT32),
        ({"dtype": "bfloat16"}, {}, torch.bfloat16, BFLOAT16),
        ({}, {"bf16": True}, torch.bfloat16, BFLOAT16),
        ({"dtype": "bfloat16"}, {"bf16": False}, torch.bfloat16, FLOAT32),
        ({"dtype": "float32"}, {"bf16": True}, torch.float32, BFLOAT16),
    ],
)
def test_one_decision_for_weights_and_computation(
    settings: dict[str, Any], load: dict[str, Any], train: dict[str, Any], weights: torch.dtype, flags: dict[str, bool]
) -> None:
    settings["train"] |= train
    recipe = parse_recipe({**settings, "load": load})
    assert training_precision(recipe).weights == weights
    assert precision_flags(recipe) == flags
    args = training_arguments(recipe)
    assert (args.bf16, args.fp16, args.device.type) == (flags["bf16"], False, "cpu")


def test_full_training_keeps_float32_weights_where_bfloat16_is_computed_in(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "hardware_dtype", lambda device: (torch.bfloat16, "this device computes in it"))
    adapter = training_precision(parse_recipe(settings))
    full = training_precision(parse_recipe({**settings, "method": "full", "adapter": {}}))
    assert (adapter.weights, adapter.compute) == (torch.bfloat16, torch.bfloat16)
    assert (full.weights, full.compute) == (torch.float32, torch.bfloat16)
    assert str(full) == "float32 weights, computed in bfloat16: this device computes in it"


def test_what_was_chosen_is_said(settings: dict[str, Any]) -> None:
    said: list[str] = []
    model, tokenizer = load_base(parse_recipe(settings), said.append)
    assert said[0].startswith("float32: this CPU")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("load", {"dtype": "float16"}, "need a GPU"),
        ("train", {"fp16": True}, "need a GPU"),
        ("train", {"model_init_kwargs": {"dtype": "bfloat16"}}, "not set here but by 'load.dtype'"),
        ("train", {"model_init_kwargs": {"quantization_config": {}}}, "not set here but by 'load.quantization'"),
    ],
)
def test_refused(settings: dict[str, Any], section: str, change: dict[str, Any], message: str) -> None:
    settings.setdefault(section, {}).update(change)
    with pytest.raises(RecipeError, match=message):
        load_base(parse_recipe(settings), silent)


def test_model_init_kwargs_reach_the_model(settings: dict[str, Any]) -> None:
    settings["train"]["model_init_kwargs"] = {"attn_implementation": "eager"}
    model, _ = load_base(parse_recipe(settings), silent)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("bits", "method", "checkpointing"),
    [("4bit", "afa-lora", False), ("4bit", "afa-lora", True), ("4bit", "afa-dora", True), ("8bit", "afa-lora", True)],
)
def test_a_quantised_model_learns(
    settings: dict[str, Any], wide_model: Path, bits: str, method: str, checkpointing: bool
) -> None:
    settings["train"]["gradient_checkpointing"] = checkpointing
    recipe = quantised(settings, bits, method=method, model=str(wide_model), merge=False)
    result = run_sft(recipe)
    losses = [loss for _, loss in result.curve.loss]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_are_as_large_as_planned(settings: dict[str, Any], bits: str) -> None:
    recipe = quantised(settings, bits)
    model, _ = load_base(recipe, silent)
    shape = shape_model(recipe, training_arguments(recipe), _plain_config(model))
    tables = 0  # 4-bit layers keep their scales beside the weight, where the footprint does not look
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            inner = state.state2
            tables += sum(t.nbytes for t in (state.absmax, state.code, state.offset, inner.absmax, inner.code))
        rows = getattr(getattr(module, "weight", None), "SCB", None)
        tables += 0 if rows is None else rows.nbytes
    assert shape.weights == pytest.approx(model.get_memory_footprint() + tables, rel=0.01)


def test_quantisation_is_refused_for_full_training(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="quantised weights cannot be trained"):
        load_base(quantised(settings, "4bit", method="full", adapter={}), silent)


@pytest.mark.parametrize("method", ["dora", "afa-dora"])
def test_8bit_dora_is_refused_on_a_cpu(settings: dict[str, Any], method: str) -> None:
    with pytest.raises(RecipeError, match="Use 4bit, or a method without DoRA"):
        load_base(quantised(settings, "8bit", method=method), silent)


def test_missing_bitsandbytes_is_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quantised(settings, "4bit")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(RecipeError, match=r"pip install 'afa-lora\[quantization\]'"):
        load_base(recipe, silent)


def test_a_model_without_chat_template_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = without_chat_template(settings["model"], tmp_path / "plain")
    with pytest.raises(ModelError, match="has no chat template"):
        load_base(parse_recipe({**settings, "model": str(plain)}), silent)


def _plain_config(model: PreTrainedModel) -> Any:
    config = model.config
    del config.quantization_config
    return config


def test_4bit_training_is_the_same_whether_or_not_the_model_was_tested_first(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """On a CPU bitsandbytes rearranges 4-bit weights at the first inference, and then their gradients are wrong."""
    settings["model"] = str(save_tiny_chat_model(tmp_path / "wide", hidden=128))
    settings["load"] = {"quantization": "4bit"}
    curves = []
    for before in (True, False):
        output = str(tmp_path / f"before-{before}")
        recipe = parse_recipe({**settings, "output": output, "evaluate": {"before": before, "max_new_tokens": 4}})
        curves.append(run_sft(recipe).curve)
    assert curves[0] == curves[1]
