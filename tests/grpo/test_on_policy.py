"""Generation, old log-probabilities and every update of a generation see one β; the logged difference proves it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from afa_lora.grpo import run as run_module
from afa_lora.grpo.recipe import parse_recipe
from afa_lora.grpo.run import run_grpo
from afa_lora.grpo.trainer import LOGPROB_DIFFERENCE, ExactGRPOTrainer
from afa_lora.training import callback

# gradient_accumulation_steps, steps_per_generation, num_iterations; the steps that share one β; TRL keeps old log-probs
SHAPES = {
    "one update": (1, 1, 1, 1, False),
    "one update of two parts": (2, 2, 1, 1, False),
    "two generations in a step": (4, 2, 1, 1, False),
    "four updates": (1, 4, 1, 4, True),
    "two passes": (1, 2, 2, 4, True),
    "two passes of parts": (2, 2, 2, 2, True),
}


class Events:
    """What a training did, in order, and the β that it did it with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, int, float]] = []
        self.of_generation: defaultdict[int, set[float]] = defaultdict(set)
        self.generations = 0
        for what in ("_generate_single_turn", "_get_per_token_logps_and_entropies", "_compute_loss"):
            self._spy(what, patch)

    def _spy(self, name: str, patch: pytest.MonkeyPatch) -> None:
        original = getattr(ExactGRPOTrainer, name)

        def spy(trainer: ExactGRPOTrainer, *args: Any, **kwargs: Any) -> Any:
            kind = name
            if name == "_generate_single_turn":
                self.generations += 1
            elif name == "_get_per_token_logps_and_entropies":
                kind = "update" if torch.is_grad_enabled() else "old"
            self.seen.append((kind, trainer.state.global_step, trainer.policy_beta))
            self.of_generation[self.generations].add(trainer.policy_beta)
            return original(trainer, *args, **kwargs)

        patch.setattr(ExactGRPOTrainer, name, spy)


def trained(settings: dict[str, Any], shape: str, patch: pytest.MonkeyPatch, **train: Any) -> tuple[Any, Events]:
    accumulation, per_generation, iterations, _, _ = SHAPES[shape]
    changes = {
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": per_generation,
        "num_iterations": iterations,
        "max_steps": 12,
    }
    settings["train"] |= changes | train
    settings["merge"], settings["evaluate"]["before"] = False, False
    events = Events(patch)
    trainers = []
    make = run_module.make_trainer

    def keep(*args: Any) -> ExactGRPOTrainer:
        trainers.append(make(*args))
        return trainers[0]

    patch.setattr(run_module, "make_trainer", keep)
    run_grpo(parse_recipe(settings))
    return trainers[0].state.log_history, events


@pytest.mark.parametrize("shape", SHAPES)
def test_one_beta_from_the_generation_to_its_last_update(
    settings: dict[str, Any], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, events = trained(settings, shape, monkeypatch)
    accumulation, per_generation, iterations, held, keeps_old = SHAPES[shape]
    assert events.generations == -(-12 * accumulation // (per_generation * iterations))
    assert all(len(betas) == 1 for betas in events.of_generation.values())
    assert ("old" in {kind for kind, _, _ in events.seen}) == keeps_old
    for kind, step, beta in events.seen:
        expected = max(0.0, 1 - (step // held * held) / 6)  # linear over the first half of 12 steps
        assert beta == pytest.approx(expected), (kind, step)
    differences = [entry[LOGPROB_DIFFERENCE] for entry in logs if "loss" in entry]
    assert len(differences) == 12
    assert max(differences) < 1e-5


def test_the_difference_shows_a_beta_that_is_not_held(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "updates_per_generation", lambda args: 1)
    _, events = trained(settings, "four updates", monkeypatch)
    assert any(len(betas) > 1 for betas in events.of_generation.values())

    # TRL's old log-probabilities are taken at the generation: they agree with the rollout, and the updates do not.
    monkeypatch.undo()
    monkeypatch.chdir(Path(settings["output"]).parent)
    settings["output"] += "-2"
    lagging = run_module.anneal_states

    def late(trainer: ExactGRPOTrainer, *args: Any, **kwargs: Any) -> Any:
        result = original(trainer, *args, **kwargs)
        for state in lagging(trainer.model).values():
            state.restore(max(state.beta - 0.1, 0.0))
        return result

    original = ExactGRPOTrainer._generate_single_turn
    monkeypatch.setattr(ExactGRPOTrainer, "_generate_single_turn", late)
    logs, _ = trained(settings, "one update", monkeypatch)
    assert logs[2][LOGPROB_DIFFERENCE] > 1e-3


def test_kl_is_against_the_model_without_its_adapter(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    logs, _ = trained(settings, "one update", monkeypatch, beta=0.1)
    kl = [entry["kl"] for entry in logs if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-6)  # B is zero: both are the base model
    assert kl[-1] > 1e-3
