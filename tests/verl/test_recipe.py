"""Table 2's commands: the paper's values, the scripts, and that verl knows every key."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from afa_lora import InvalidSettingError
from afa_lora.core.placement import PLACEMENTS
from afa_lora.grpo.verl_recipe import ARMS, SIZES, main, verl_command

SCRIPTS = Path(__file__).parents[2] / "recipes" / "verl"

# The paper's experiments, GRPO; the KL's form and the adapter's values are ours.
PAPER = {
    "algorithm.adv_estimator": "grpo",
    "data.train_batch_size": "1024",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "256",
    "data.max_prompt_length": "512",
    "data.max_response_length": "1024",
    "actor_rollout_ref.rollout.n": "5",
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.actor.optim.optimizer": "AdamW",
    "actor_rollout_ref.actor.use_kl_loss": "True",
    "actor_rollout_ref.actor.entropy_coeff": "0",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "True",
    "trainer.total_epochs": "15",
    "actor_rollout_ref.actor.kl_loss_coef": "0.001",
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
}
ADAPTER = {
    "actor_rollout_ref.model.lora_rank": "64",
    "actor_rollout_ref.model.lora_alpha": "32",
    "actor_rollout_ref.actor.optim.lr": "3e-6",
}


def values(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command[3:])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("size", SIZES)
def test_every_arm_has_the_papers_values(size: str, arm: str) -> None:
    command = verl_command(size, arm)
    found = values(command)
    assert len(found) == len(command) - 3  # no key twice
    assert PAPER.items() <= found.items()
    assert (ADAPTER.items() <= found.items()) == (arm != "full")
    assert found["actor_rollout_ref.model.path"] == f"Qwen/Qwen2.5-{size.upper()}-Instruct"
    annealing = {key.rpartition(".")[2]: value for key, value in found.items() if ".lora.afa." in key}
    if arm not in PLACEMENTS:
        assert not annealing
        return
    assert annealing == {
        "activation": "relu",
        "placement": arm.replace("σ", "s"),
        "schedule": "linear",
        "anneal_start": "0.0",
        "anneal_end": "0.3",
    }


def test_the_arms_are_table_2s() -> None:
    assert ARMS == ("full", "lora", "σ-A-B", "A-σ-B", "A-B-σ", "σ-A-σ-B", "A-σ-B-σ", "σ-A-B-σ", "σ-A-σ-B-σ")


def test_arms_differ_only_in_the_adapter() -> None:
    lora, afa = values(verl_command("7b", "lora")), values(verl_command("7b", "A-σ-B"))
    changed = {key for key in lora.keys() | afa.keys() if lora.get(key) != afa.get(key)}
    assert {key for key in changed if ".lora.afa." not in key} == {
        "actor_rollout_ref.model.external_lib",
        "trainer.experiment_name",
    }


def test_unknown_names() -> None:
    with pytest.raises(InvalidSettingError, match=r"size='8b' is not known.*'7b'"):
        verl_command("8b", "lora")
    with pytest.raises(InvalidSettingError, match=r"arm='loraa' is not known.*Did you mean 'lora'"):
        verl_command("7b", "loraa")


@pytest.mark.parametrize("size", SIZES)
def test_the_script_hands_on_its_arguments(size: str) -> None:
    script = [str(SCRIPTS / f"qwen2.5-{size}.sh"), "s-A-B-s", "trainer.nnodes=2"]
    called = subprocess.run(script, env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True)
    assert called.stdout.split() == ["-m", "afa_lora.grpo.verl_recipe", size, *script[1:]]


def test_the_module_prints_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSM8K", "/some where/gsm8k")
    main(["14b", "s-A-B-s", "trainer.nnodes=2", "--print"])
    assert shlex.split(capsys.readouterr().out) == verl_command(
        "14b", "σ-A-B-σ", "/some where/gsm8k", ["trainer.nnodes=2"]
    )
    with pytest.raises(SystemExit, match="Did you mean 'lora'"):
        main(["14b", "lor"])
    with pytest.raises(SystemExit, match="usage"):
        main(["14b"])


@pytest.mark.verl
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("size", SIZES)
def test_verl_knows_every_key(size: str, arm: str) -> None:
    import verl_cpu  # noqa: F401  (gives verl a platform)
    from verl.utils.config import omega_conf_to_dataclass
    from verl_tiny import composed

    from afa_lora.grpo.verl.settings import read_settings
    from afa_lora.peft.config import AfaLoraConfig

    config = composed(verl_command(size, arm, "/data")[3:]).actor_rollout_ref
    assert config.rollout.n == 5
    actor = omega_conf_to_dataclass(config.actor)
    assert (actor.strategy, actor.ppo_mini_batch_size) == ("fsdp2", 256)
    settings = read_settings(config.model.lora)
    assert (settings is None) == (arm not in PLACEMENTS)
    if settings is not None:
        assert AfaLoraConfig(r=64, **settings.adapter).placement == arm
