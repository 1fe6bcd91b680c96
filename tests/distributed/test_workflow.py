"""Two ranks answer, and train with TRL under DDP and FSDP2, as one process does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.chat import BATCHES, add_adapter, answers, load, make_trainer
from tests.distributed.launch import RANKS, torchrun
from tests.tiny_chat import save_tiny_chat_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RUNS = ["ddp", "fsdp2", "fsdp2-resumed", "fsdp2-lean"]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def results(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow")
    torchrun(Path(__file__).with_name("workflow.py"), chat, folder)
    return folder


@pytest.fixture(scope="module")
def alone(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same training in one process, with the batches of both ranks together."""
    folder = tmp_path_factory.mktemp("alone")
    model, tokenizer = load(chat)
    trainer = make_trainer(add_adapter(model), tokenizer, folder, RANKS * 2, logging_steps=1)
    trainer.train()
    trainer.save_model(str(folder / "final"))
    return trainer, load_file(folder / "final" / "adapter_model.safetensors")


def noted(results: Path, name: str) -> list[Any]:
    return [json.loads((results / f"{name}-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_answers_are_those_of_one_process_on_every_rank(chat: Path, results: Path, how: str) -> None:
    wanted = json.loads(json.dumps(answers(*load(chat))))
    assert [len(batch) for batch in wanted] == [items for items, _ in BATCHES]
    assert len({len(given) for given, _ in wanted[0]}) > 1  # some end early
    assert [found[how] for found in noted(results, "answers")] == [wanted] * RANKS


@pytest.mark.parametrize("name", RUNS)
def test_sft_of_two_ranks_equals_one_process(results: Path, alone: Any, name: str) -> None:
    trainer, adapter = alone
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for found in noted(results, name):
        assert found["loss"] == pytest.approx(losses, abs=1e-4)
        assert found["beta"] == 0.0
        # The Trainer averages the means of the ranks' batches and repeats items to fill them: among two ranks alone.
        assert found["eval_loss"] == pytest.approx(noted(results, "ddp")[0]["eval_loss"], abs=1e-4)
        assert found["answers"] == json.loads(json.dumps(answers(trainer.model, trainer.processing_class)))
    saved = load_file(results / name / "adapter_model.safetensors")
    assert saved.keys() == adapter.keys()
    for key, tensor in adapter.items():
        torch.testing.assert_close(saved[key], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_checkpoints_of_the_annealing_hold_their_beta(results: Path, name: str) -> None:
    steps = {step: load_file(results / f"{name}-run/checkpoint-{step}/adapter_model.safetensors") for step in (2, 4)}
    assert steps[2]["afa_beta"].item() == pytest.approx(1 / 3)
    assert "afa_beta" not in steps[4]
