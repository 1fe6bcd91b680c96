"""Two ranks under DDP and FSDP2 train, save and merge what one process does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from afa_lora import load_adapter, set_beta
from tests.distributed.launch import RANKS, torchrun
from tests.distributed.tiny import (
    BETAS,
    KINDS,
    adapted_model,
    adapter_tensors,
    base_model,
    fill,
    filled_model,
    one_step,
    tokens,
    train,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have written; the program asserts the rest itself."""
    folder = tmp_path_factory.mktemp("library")
    torchrun(Path(__file__).with_name("library.py"), folder)
    return folder


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}{text}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_training_equals_one_process_on_the_whole_batch(results: Path, how: str, kind: str) -> None:
    """Not to the bit: each rank sums the gradients of its own sentences first, and AdamW divides by their size."""
    model = adapted_model(kind)
    before = adapter_tensors(model.state_dict())
    betas = train(model, model, slice(None))
    wanted = {"beta": betas, **adapter_tensors(model.state_dict())}
    found = [load_file(results / f"{how}-{kind}-{rank}") for rank in range(RANKS)]
    assert betas.tolist() == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6])
    assert max((wanted[key] - before[key]).abs().max() for key in before) > 1e-2
    assert_close(found[0], wanted, 2e-5)
    assert_close(found[1], found[0], 0.0)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_step_of_fsdp2_with_gradient_checkpointing_is_that_of_one_process_without(results: Path, kind: str) -> None:
    steps = []
    for beta in BETAS:
        model = filled_model(kind, beta)
        one_step(model, slice(None))
        steps.append(adapter_tensors(model.state_dict()))
        for rank in range(RANKS):
            assert_close(load_file(results / f"step-{kind}-{beta}-{rank}"), steps[-1], 1e-5)
    before = adapter_tensors(filled_model(kind, 1.0).state_dict())
    for one, other in ((before, steps[0]), (steps[0], steps[1]), (steps[1], steps[2])):
        assert max((one[key] - other[key]).abs().max() for key in before) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_saved_by_fsdp2_while_annealing_is_the_same_function_in_one_process(results: Path, kind: str) -> None:
    saved = load_file(results / f"saved-{kind}" / "adapter_model.safetensors")
    assert saved["afa_beta"].item() == pytest.approx(0.5)
    model = load_adapter(base_model(), results / f"saved-{kind}")
    assert model.peft_config["default"].beta == saved["afa_beta"].item()
    with torch.no_grad():
        logits = model(input_ids=tokens(99)).logits
    for rank in range(RANKS):
        torch.testing.assert_close(load_file(results / f"logits-{kind}-{rank}")["logits"], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_file_of_fsdp2_is_that_of_one_process(results: Path, kind: str, tmp_path: Path) -> None:
    model = adapted_model(kind)
    train(model, model, slice(None))
    model.save_pretrained(tmp_path)
    files = [folder / "adapter_model.safetensors" for folder in (results / f"saved-{kind}", tmp_path)]
    assert_close(load_file(files[0]), load_file(files[1]), 2e-5)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("reshard", "safe"), [(True, False), (False, True)])
def test_model_merged_by_fsdp2_is_that_of_one_process(results: Path, kind: str, reshard: bool, safe: bool) -> None:
    model = adapted_model(kind)
    fill(model)
    set_beta(model, 0.0)
    model.merge_adapter()
    assert_close(load_file(results / f"merged-{kind}-{reshard}-{safe}"), model.state_dict(), 1e-6)
