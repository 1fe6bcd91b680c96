"""`VllmRollout`: what it samples, and with which log-probabilities, is what the training's model says at the time."""

import copy
import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from afa_lora import AfaLoraConfig, linearize, set_beta
from afa_lora.core.placement import PLACEMENTS
from afa_lora.grpo.rollout.engine import VllmRollout
from afa_lora.grpo.rollout.rules import RolloutError
from afa_lora.grpo.rollout.settings import EngineSettings, Sampling
from afa_lora.models import embedded_folder
from afa_lora.peft.model import anneal_states
from tests.serving.models import save_model
from tests.serving.rollout import BASE, DIFFERENT, EQUAL, PROMPTS, TOKENS, largest_difference

pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

SIZE = EngineSettings(max_length=64, max_sequences=8, cache_gib=0.25)
COMMON = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("rollout") / "base", BASE)


def adapted(base: Path, config: LoraConfig, std: float = 0.3, seed: int = 1) -> PeftModel:
    """A model in training whose B is not 0."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    change(model, std)
    return model


def change(model: PeftModel, std: float = 0.3) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)


@contextmanager
def rollout(policy: str, base: Path, config: LoraConfig | None, size: EngineSettings = SIZE) -> Iterator[VllmRollout]:
    engine = VllmRollout(policy, base, config, dtype=torch.float32, settings=size)
    try:
        yield engine
    finally:
        engine.close()


def drawn(engine: VllmRollout, seed: int = 0, **how: Any) -> tuple[list[list[int]], list[list[float]]]:
    return engine.generate(PROMPTS, max_tokens=TOKENS, seed=seed, **how)


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def as_linear(model: PeftModel) -> PeftModel:
    twin = copy.deepcopy(model)
    set_beta(twin, 0.0)
    return twin


class TestExact:
    """One engine through a training."""

    @pytest.fixture(scope="class")
    def model(self, base: Path) -> PeftModel:
        return adapted(base, AfaLoraConfig(**COMMON))

    @pytest.fixture(scope="class")
    def engine(self, base: Path, model: PeftModel) -> Iterator[VllmRollout]:
        with rollout("vllm-exact", base, model.peft_config["default"]) as engine:
            yield engine

    def test_nothing_is_sampled_before_there_is_a_policy(self, engine: VllmRollout) -> None:
        with pytest.raises(RolloutError, match="call sync first"):
            drawn(engine)

    @pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
    def test_the_policy_at_every_beta(self, engine: VllmRollout, model: PeftModel, beta: float) -> None:
        set_beta(model, beta)
        before = tensors(model)
        report = engine.sync(model, step=int(10 - 10 * beta))
        found = drawn(engine)
        assert (report.beta, report.linearized, report.metrics()) == (beta, None, {"afa/rollout_beta": beta})
        assert largest_difference(model, PROMPTS, found) < EQUAL
        if beta:
            assert largest_difference(as_linear(model), PROMPTS, found) > DIFFERENT
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert anneal_states(model)["default"].beta == beta

    def test_after_an_update_the_old_policy_is_gone(self, engine: VllmRollout, model: PeftModel) -> None:
        """The same prompts again, whose keys and values vLLM has cached."""
        set_beta(model, 0.5)
        engine.sync(model, 1)
        old, first = copy.deepcopy(model), drawn(engine)
        change(model)
        engine.sync(model, 2)
        second = drawn(engine)
        assert engine._llm.llm_engine.list_loras() == {engine._request.lora_int_id}
        assert largest_difference(model, PROMPTS, second) < EQUAL
        assert largest_difference(old, PROMPTS, second) > DIFFERENT
        assert largest_difference(old, PROMPTS, first) < EQUAL
        assert largest_difference(model, PROMPTS, first) > DIFFERENT

    def test_temperature_and_top_k_are_in_the_log_probabilities(self, engine: VllmRollout, model: PeftModel) -> None:
        engine.sync(model, 3)
        found = drawn(engine, sampling=Sampling(temperature=0.7, top_k=20))
        assert largest_difference(model, PROMPTS, found, temperature=0.7, top_k=20) < EQUAL
        assert largest_difference(model, PROMPTS, found) > DIFFERENT

    def test_the_seed_decides_and_the_training_has_its_own(self, engine: VllmRollout, model: PeftModel) -> None:
        engine.sync(model, 4)

        def state() -> tuple[Any, ...]:
            numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is looked at
            return random.getstate(), numpy, torch.get_rng_state().tolist()

        before = state()
        one, again, other = drawn(engine, 7), drawn(engine, 7), drawn(engine, 8)
        assert state() == before
        assert one[0] == again[0]
        assert one[0] != other[0]

    def test_each_completion_of_a_prompt_is_drawn_anew(self, engine: VllmRollout, model: PeftModel) -> None:
        engine.sync(model, 5)
        ids, log_probs = engine.generate([PROMPTS[0], PROMPTS[0]], n=3, max_tokens=TOKENS, seed=1)
        assert len({tuple(tokens) for tokens in ids}) == 6
        assert largest_difference(model, [PROMPTS[0]] * 6, (ids, log_probs)) < EQUAL

    def test_completions_end_where_they_are_told(self, engine: VllmRollout, model: PeftModel) -> None:
        engine.sync(model, 6)
        whole, _ = drawn(engine, 9)
        stop = whole[0][4]
        cut, _ = drawn(engine, 9, sampling=Sampling(stop_token_ids=(stop,)))
        assert cut[0] == whole[0][: whole[0].index(stop) + 1]
        assert max(map(len, cut)) <= TOKENS

    def test_what_does_not_fit_is_refused(self, engine: VllmRollout, model: PeftModel) -> None:
        engine.sync(model, 7)
        assert engine.generate([], max_tokens=5, seed=0) == ([], [])
        with pytest.raises(RolloutError, match=r"65 tokens.*max_length=64"):
            engine.generate([[5] * 60], max_tokens=5, seed=0)

    def test_a_refused_adapter_leaves_no_policy(self, engine: VllmRollout, base: Path) -> None:
        other = adapted(base, AfaLoraConfig(**COMMON, activation="gelu"))
        with pytest.raises(ValueError, match="this engine computes activation='silu'"):
            engine.sync(other, 8)
        with pytest.raises(RolloutError, match="call sync first"):
            drawn(engine)

    def test_one_adapter_at_a_time(self, engine: VllmRollout, base: Path) -> None:
        two = adapted(base, AfaLoraConfig(**COMMON))
        two.add_adapter("second", AfaLoraConfig(**COMMON))
        two.base_model.set_adapter(["default", "second"])
        with pytest.raises(RolloutError, match="Activate one"):
            engine.sync(two, 9)
        two.base_model.set_adapter("second")
        engine.sync(two, 9)
        assert largest_difference(two, PROMPTS, drawn(engine)) < EQUAL


class TestLinearized:
    """One engine for all placements: what it gets is plain LoRA."""

    @pytest.fixture(scope="class")
    def engine(self, base: Path) -> Iterator[VllmRollout]:
        with rollout("vllm-linearized", base, AfaLoraConfig(**COMMON)) as engine:
            yield engine

    @pytest.mark.parametrize("placement", PLACEMENTS)
    def test_the_stand_in_is_the_one_of_linearize(self, base: Path, engine: VllmRollout, placement: str) -> None:
        model = adapted(base, AfaLoraConfig(**COMMON, placement=placement), std=0.2)
        batch = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 40, 41, 42], [100, 101, 7, 7, 7, 0, 0, 0]])}
        batch["attention_mask"] = (batch["input_ids"] != 0).long()
        twin = copy.deepcopy(model)
        expected, before = linearize(twin, batch), tensors(model)
        report = engine.sync(model, 5, [batch])
        found = drawn(engine)
        assert largest_difference(twin, PROMPTS, found) < EQUAL
        assert largest_difference(model, PROMPTS, found) > 10 * EQUAL
        assert report.linearized == expected
        assert report.metrics()["afa/linearized_error_max"] == max(expected.relative_error.values()) > 0.01
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_slopes_need_data(self, base: Path, engine: VllmRollout) -> None:
        with pytest.raises(RolloutError, match="give calibration batches"):
            engine.sync(adapted(base, AfaLoraConfig(**COMMON)), 5)


def test_waiting(base: Path) -> None:
    model = adapted(base, AfaLoraConfig(**COMMON))
    with rollout("vllm-wait", base, model.peft_config["default"]) as engine:
        assert (engine.serves(0.1), engine.serves(0.0)) == (False, True)
        with pytest.raises(RolloutError, match="transformers until β = 0, and β = 1"):
            engine.sync(model, 0)
        set_beta(model, 0.0)
        engine.sync(model, 1)
        assert largest_difference(model, PROMPTS, drawn(engine)) < EQUAL


def test_plain_lora(base: Path) -> None:
    model = adapted(base, LoraConfig(**COMMON))
    with rollout("vllm-exact", base, model.peft_config["default"]) as engine:
        assert engine.sync(model, 1).metrics() == {"afa/rollout_beta": 0.0}
        assert largest_difference(model, PROMPTS, drawn(engine)) < EQUAL


def test_the_whole_model(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with rollout("vllm-exact", base, None) as engine:
        engine.sync(model, 0)
        old, first = copy.deepcopy(model), drawn(engine)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        engine.sync(model, 1)
        second = drawn(engine)
    assert largest_difference(old, PROMPTS, first) < EQUAL
    assert largest_difference(model, PROMPTS, second) < EQUAL
    assert largest_difference(old, PROMPTS, second) > DIFFERENT


def test_smollm2() -> None:
    """The model of the quickstart, whose embeddings are tied, with an adapter of the quickstart's size."""
    base = embedded_folder("smollm2-135m")
    model = adapted(base, AfaLoraConfig(**{**COMMON, "r": 16, "lora_alpha": 32}), std=0.03)
    with rollout("vllm-exact", base, model.peft_config["default"]) as engine:
        for beta in (1.0, 0.5, 0.0):
            set_beta(model, beta)
            engine.sync(model, 0)
            found = drawn(engine)
            assert largest_difference(model, PROMPTS, found) < EQUAL
            if beta:
                assert largest_difference(as_linear(model), PROMPTS, found) > DIFFERENT


def test_training_goes_on_beside_an_engine(base: Path) -> None:
    """Gradients and threads are those of a process without an engine."""
    model = adapted(base, AfaLoraConfig(**COMMON))
    ids = torch.tensor([PROMPTS[3]])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    alone, threads, dtype = gradients(), torch.get_num_threads(), torch.get_default_dtype()
    set_threads = torch.set_num_threads
    with rollout("vllm-exact", base, model.peft_config["default"]) as engine:
        engine.sync(model, 0)
        drawn(engine)
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
        assert all(torch.equal(one, two) for one, two in zip(alone, gradients(), strict=True))
    assert torch.set_num_threads is set_threads


def test_no_such_base_model(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match="vLLM does not start with"):
        VllmRollout("vllm-exact", tmp_path / "nowhere", None, dtype=torch.float32)
