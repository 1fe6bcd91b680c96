"""The plug-in in real engines: adapters with β > 0 are computed as transformers computes them, or refused."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from afa_lora.core.placement import PLACEMENTS
from afa_lora.grpo.rollout.annealing import OPTION
from tests.serving.models import save_adapter, save_model
from tests.serving.rollout import BASE, DIFFERENT, EQUAL, PROMPTS, TOKENS, largest_difference, load

pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

SILU = {"activation": "silu", "placement": "A-σ-B"}
CASES = [*zip(PLACEMENTS, ("relu", "silu", "gelu", "tanh", "leaky_relu", "silu", "relu"), strict=True)]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("rollout") / "base", BASE)


@contextmanager
def engine(base: Path, option: Any, **settings: Any) -> Iterator[Any]:
    """One engine in this process. vLLM itself finds the plug-in by its entry point."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="ERROR"
    )
    from vllm import LLM

    size = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28}
    adapters = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3}
    asked = {} if option is None else {"additional_config": {OPTION: option}}
    fixed = {"dtype": "float32", "enforce_eager": True, "logprobs_mode": "processed_logprobs"}
    llm = LLM(str(base), **{**size, **adapters, **fixed, **asked, **settings})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="class")
def silu(base: Path) -> Iterator[Any]:
    with engine(base, SILU) as llm:
        yield llm


def request(adapter: Path | None, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, number, str(adapter)) if adapter else None


def drawn(llm: Any, adapters: list[Path | None]) -> tuple[list[list[int]], list[list[float]]]:
    """A completion of each prompt with the adapter beside it, all in one batch, and the log-probabilities."""
    from vllm import SamplingParams

    numbers = {adapter: number for number, adapter in enumerate(dict.fromkeys(filter(None, adapters)), start=1)}
    settings = SamplingParams(temperature=1, max_tokens=TOKENS, ignore_eos=True, logprobs=0, seed=3, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    requests = [request(adapter, numbers.get(adapter, 0)) for adapter in adapters]
    answers = [answer.outputs[0] for answer in llm.generate(prompts, settings, lora_request=requests, use_tqdm=False)]
    ids = [list(answer.token_ids) for answer in answers]
    return ids, [[at[t].logprob for t, at in zip(a.token_ids, a.logprobs, strict=True)] for a in answers]


def mixed_batch(llm: Any, base: Path, folder: Path, **settings: Any) -> None:
    """β = 1, β = 0.5, β = 0 and the base model in one batch, each as transformers has it and unlike the linear one."""
    adapters = [save_adapter(folder / str(beta), base, beta, std=0.3, **settings) for beta in (1.0, 0.5, 0.0)]
    found = drawn(llm, [*adapters, None])
    for number, adapter in enumerate([*adapters, None]):
        own = [found[0][number]], [found[1][number]]
        assert largest_difference(load(base, adapter), [PROMPTS[number]], own) < EQUAL
        if adapter != adapters[-1]:  # the comparison sees what an engine would do that knows no σ
            assert largest_difference(load(base, adapters[-1]), [PROMPTS[number]], own) > DIFFERENT


@pytest.mark.parametrize(("placement", "activation"), CASES)
def test_adapters_of_any_beta_and_the_base_in_one_batch(
    tmp_path: Path, base: Path, placement: str, activation: str
) -> None:
    with engine(base, {"placement": placement, "activation": activation}) as llm:
        mixed_batch(llm, base, tmp_path, placement=placement, activation=activation)


def test_fully_sharded_adapters_go_the_same_way(tmp_path: Path, base: Path) -> None:
    """vLLM's code for tensor parallelism, on one rank."""
    with engine(base, {"placement": "σ-A-σ-B-σ", "activation": "silu"}, fully_sharded_loras=True) as llm:
        mixed_batch(llm, base, tmp_path, placement="σ-A-σ-B-σ")


class TestOneEngine:
    """SiLU between A and B."""

    def test_parts_of_packed_layers(self, tmp_path: Path, silu: Any, base: Path) -> None:
        """vLLM packs q, k and v, and gate and up; an adapter may have some of them, of several ranks and scalings."""
        some = {"target_modules": ["k_proj", "up_proj", "o_proj"], "rank_pattern": {"up_proj": 7}, "use_rslora": True}
        mixed_batch(silu, base, tmp_path, **some)

    def test_another_activation_or_placement_is_refused(self, tmp_path: Path, silu: Any, base: Path) -> None:
        for name, other in {"gelu": {"activation": "gelu"}, "A-B-σ": {"placement": "A-B-σ"}}.items():
            adapter = save_adapter(tmp_path / name, base, 0.5, **other)
            with pytest.raises(ValueError, match=f"{name}.*this engine computes activation='silu', placement='A-σ-B'"):
                silu.llm_engine.add_lora(request(adapter, 21))

    def test_an_activation_of_the_users_own_must_be_registered(self, tmp_path: Path, silu: Any, base: Path) -> None:
        adapter = save_adapter(tmp_path / "own", base, 0.5)
        change(adapter, activation="mine")
        with pytest.raises(ValueError, match=r"activation='mine'.*register_activation"):
            silu.llm_engine.add_lora(request(adapter, 22))

    def test_beta_in_one_file_and_not_in_the_other_is_refused(self, tmp_path: Path, silu: Any, base: Path) -> None:
        """Without its β, vLLM would take the file for a linear adapter's."""
        tensors = load_file(save_adapter(tmp_path / "whole", base, 0.5) / WEIGHTS)
        without = save_adapter(tmp_path / "without", base, 0.5)
        save_file({name: tensor for name, tensor in tensors.items() if "afa_beta" not in name}, without / WEIGHTS)
        plain = save_adapter(tmp_path / "plain", base, 0.0)
        save_file(tensors, plain / WEIGHTS)
        for adapter in (without, plain):
            with pytest.raises(ValueError, match="afa_beta"):
                silu.llm_engine.add_lora(request(adapter, 23))

    def test_layers_that_go_another_way_are_refused(self, tmp_path: Path, silu: Any, base: Path) -> None:
        adapter = save_adapter(tmp_path / "head", base, 0.5, target_modules=["q_proj", "lm_head"])
        with pytest.raises(ValueError, match=r"lm_head.*Take the layer out of target_modules"):
            silu.llm_engine.add_lora(request(adapter, 24))

    def test_dora_is_refused(self, tmp_path: Path, silu: Any, base: Path) -> None:
        adapter = save_adapter(tmp_path / "dora", base, 0.5, use_dora=True)
        with pytest.raises(ValueError, match="vLLM does not yet support DoRA"):
            silu.llm_engine.add_lora(request(adapter, 25))


def test_after_b_the_layers_share_one_scaling(tmp_path: Path, base: Path) -> None:
    adapter = save_adapter(tmp_path / "two", base, 0.5, placement="A-B-σ", alpha_pattern={"q_proj": 2})
    message = r"scales its layers differently \(s = \[0\.5, 2\.0\]"
    with engine(base, {"placement": "A-B-s", "activation": "silu"}) as llm, pytest.raises(ValueError, match=message):
        llm.llm_engine.add_lora(request(adapter, 1))


def test_an_engine_that_does_not_ask_for_it_refuses_beta(tmp_path: Path, base: Path) -> None:
    adapter = save_adapter(tmp_path / "annealing", base, 0.5)
    with engine(base, None) as llm, pytest.raises(ValueError, match="afa_beta is unsupported LoRA weight"):
        llm.llm_engine.add_lora(request(adapter, 1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "silu"}, r"must hold \['activation', 'placement'\]"),
        ({"activation": "sliu", "placement": "A-σ-B"}, "Did you mean 'silu'"),
        ({"activation": "silu", "placement": "B-σ-A"}, "placement='B-σ-A' is not known"),
    ],
)
def test_a_wrong_option_stops_the_engine(base: Path, option: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), engine(base, option):
        pass


def test_tensor_parallelism_needs_whole_ranks(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager asks the configuration for the number of ranks; the engine has one."""
    from vllm.lora.model_manager import LoRAModelManager

    from afa_lora.grpo.rollout import plugin

    plugin.register()
    ours = LoRAModelManager._init_punica_wrapper

    def as_on_two_ranks(manager: Any, tokens: int, config: Any) -> None:
        monkeypatch.setattr(config.parallel_config, "tensor_parallel_size", 2)
        ours(manager, tokens, config)

    monkeypatch.setattr(LoRAModelManager, "_init_punica_wrapper", as_on_two_ranks)
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2 with fully_sharded_loras=False"), engine(base, SILU):
        pass


PROGRAM = """
import sys
from vllm import LLM
from vllm.lora.request import LoRARequest
size = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28}
option = {"afa_lora": {"activation": "silu", "placement": "A-σ-B"}}
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, enable_lora=True, additional_config=option, **size)
try:
    print("accepted", llm.llm_engine.add_lora(LoRARequest("annealing", 1, sys.argv[2])))
except ValueError as error:
    print("refused", error)
"""


@pytest.mark.parametrize(
    ("plugins", "answer"), [(None, "accepted True"), ("", "refused afa_beta is unsupported LoRA weight")]
)
def test_vllm_finds_the_plugin_by_itself_and_refuses_without_it(
    tmp_path: Path, base: Path, plugins: str | None, answer: str
) -> None:
    adapter = save_adapter(tmp_path / "annealing", base, 0.5)
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    if plugins is not None:
        environment["VLLM_PLUGINS"] = plugins
    command = [sys.executable, "-c", PROGRAM, str(base), str(adapter)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert answer in done.stdout, done.stderr


def change(adapter: Path, **settings: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, **settings}))


class TestContract:
    """A vLLM that is built otherwise is named, and left alone."""

    def test_this_one_fits(self) -> None:
        from afa_lora.grpo.rollout.contract import check_seams, seam_faults

        assert seam_faults() == []
        check_seams()

    def test_what_has_changed_is_named(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        from vllm.lora.model_manager import LoRAModelManager
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
        from vllm.lora.worker_manager import WorkerLoRAManager

        from afa_lora.grpo.rollout import plugin
        from afa_lora.grpo.rollout.contract import VllmSeamError, check_seams

        def add_expand(self: Any, y: Any, x: Any, weights: Any) -> None: ...

        def add_lora_linear(
            self: Any, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: Any, output_slices: Any, *,
            buffer: Any = None
        ) -> None:  # fmt: skip
            self.add_shrink(y)

        def not_ours(manager: Any, max_num_batched_tokens: int, vllm_config: Any) -> None: ...

        monkeypatch.setattr(PunicaWrapperCPU, "add_expand", add_expand)
        monkeypatch.setattr(PunicaWrapperCPU, "add_lora_linear", add_lora_linear)
        monkeypatch.setattr(LoRAModelManager, "_init_punica_wrapper", not_ours)
        monkeypatch.delattr(WorkerLoRAManager, "_load_adapter")
        with pytest.raises(VllmSeamError) as found:
            check_seams()
        for part in (
            "PunicaWrapperCPU.add_expand takes y, x, weights, not y, x, lora_b_stacked",
            "PunicaWrapperCPU.add_lora_linear does not use add_expand",
            "WorkerLoRAManager._load_adapter is gone",
        ):
            assert part in str(found.value)
        plugin.register()
        assert LoRAModelManager._init_punica_wrapper is not_ours
        assert "annealing adapters are refused" in caplog.text


TWO_RANKS = """
import sys
from pathlib import Path
from vllm import LLM
from tests.serving.test_rollout_plugin import mixed_batch
if __name__ == "__main__":
    size = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 28, "tensor_parallel_size": 2}
    adapters = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3, "fully_sharded_loras": True}
    option = {"afa_lora": {"activation": "silu", "placement": sys.argv[3]}}
    fixed = {"dtype": "float32", "enforce_eager": True, "logprobs_mode": "processed_logprobs"}
    llm = LLM(sys.argv[1], additional_config=option, **size, **adapters, **fixed)
    mixed_batch(llm, Path(sys.argv[1]), Path(sys.argv[2]), placement=sys.argv[3])
    print("equal on two ranks")
"""


def test_two_ranks_with_sharded_adapters(tmp_path: Path, base: Path) -> None:
    """Tensor parallelism in processes of their own, which find the plug-in by themselves."""
    (tmp_path / "program.py").write_text(TWO_RANKS)
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    command = [sys.executable, str(tmp_path / "program.py"), str(base), str(tmp_path), "σ-A-σ-B-σ"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert "equal on two ranks" in done.stdout, done.stderr
