"""SmolLM2 with adapters in a real vLLM, on the CPU. ``make test-serving`` sets up the environment for this."""

import importlib.util
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from afa_lora import NotLinearError, load_adapter
from afa_lora.models import embedded_folder
from afa_lora.serving import ExportError, export_adapter, export_merged, export_vllm
from tests.serving.greedy import is_greedy
from tests.serving.models import save_adapter

pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

MODEL = "smollm2-135m"
LENGTH = 32
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small dragon who",
    "def fibonacci(n):\n",
    "17 + 25 =",
)


@pytest.fixture(scope="module")
def smol() -> Path:
    return embedded_folder(MODEL)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, smol: Path) -> dict[str, Path]:
    """One adapter three times: at the end of its annealing, in the middle of it, and as DoRA; B is random, not 0."""
    folder = tmp_path_factory.mktemp("adapters")
    settings = {"r": 8, "lora_alpha": 16, "std": 0.03}
    return {
        "linear": save_adapter(folder / "linear", smol, 0.0, **settings),
        "annealing": save_adapter(folder / "annealing", smol, 0.5, **settings),
        "dora": save_adapter(folder / "dora", smol, 0.0, use_dora=True, **settings),
    }


def start(model: Path, **options: Any) -> Any:
    """An engine in this process, in float32 and with little memory. vLLM has room for one at a time."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM

    size = {"max_model_len": 256, "max_num_seqs": len(PROMPTS)}
    return LLM(str(model), dtype="float32", enforce_eager=True, disable_log_stats=True, **size, **options)


def served(llm: Any, adapter: Path | None = None, number: int = 1) -> list[list[int]]:
    """vLLM's greedy tokens for each prompt."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    request = LoRARequest(adapter.name, number, str(adapter)) if adapter else None
    settings = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    answers = llm.generate(PROMPTS, settings, lora_request=request, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def agreeing(smol: Path, adapter: Path | None, answers: list[list[int]]) -> list[bool]:
    """For each prompt, whether transformers continues it in the same way."""
    model = AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32)
    model = (load_adapter(model, adapter) if adapter else model).eval()
    prompts = AutoTokenizer.from_pretrained(smol)(list(PROMPTS)).input_ids
    assert {len(answer) for answer in answers} == {LENGTH}
    return [is_greedy(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


@pytest.fixture(scope="class")
def engine(smol: Path) -> Iterator[Any]:
    """The base model, ready for adapters."""
    llm = start(smol, enable_lora=True, max_lora_rank=8, max_loras=1)
    yield llm
    llm.llm_engine.engine_core.shutdown()


class TestBesideItsBase:
    """One engine that serves the base model with adapters."""

    def test_the_exported_adapter_is_served_as_transformers_computes_it(
        self, tmp_path: Path, engine: Any, smol: Path, adapters: dict[str, Path]
    ) -> None:
        done = export_vllm(adapters["linear"], tmp_path / "sums")
        adapted, plain = served(engine, done.path), served(engine)
        assert all(agreeing(smol, adapters["linear"], adapted))
        assert all(agreeing(smol, None, plain))
        assert not any(agreeing(smol, None, adapted))  # the adapter changes every answer, and the comparison sees it

    def test_an_annealing_adapter_is_refused_here_and_by_vllm(
        self, tmp_path: Path, engine: Any, adapters: dict[str, Path]
    ) -> None:
        for export in (export_vllm, export_adapter, export_merged):
            with pytest.raises(NotLinearError, match=r"β = 0\.5"):
                export(adapters["annealing"], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(ValueError, match="afa_beta is unsupported LoRA weight"):
            self.add(engine, adapters["annealing"], 2)

    def test_dora_is_refused_here_and_by_vllm(self, tmp_path: Path, engine: Any, adapters: dict[str, Path]) -> None:
        with pytest.raises(ExportError, match="use_dora=True"):
            export_vllm(adapters["dora"], tmp_path / "out")
        with pytest.raises(ValueError, match="vLLM does not yet support DoRA"):
            self.add(engine, adapters["dora"], 3)

    def test_a_request_for_an_annealing_adapter_raises(self, engine: Any, adapters: dict[str, Path]) -> None:
        """The last one with this engine, which keeps the request that failed."""
        with pytest.raises(ValueError, match="afa_beta is unsupported LoRA weight"):
            served(engine, adapters["annealing"], 4)

    def add(self, llm: Any, adapter: Path, number: int) -> None:
        """Load an adapter as the engine does for a request that asks for it."""
        from vllm.lora.request import LoRARequest

        llm.llm_engine.add_lora(LoRARequest(adapter.name, number, str(adapter)))


def test_the_merged_model_is_served_with_the_same_tokens(tmp_path: Path, smol: Path, adapters: dict[str, Path]) -> None:
    llm = start(export_merged(adapters["linear"], tmp_path / "merged").path)
    answers = served(llm)
    llm.llm_engine.engine_core.shutdown()
    assert all(agreeing(smol, adapters["linear"], answers))
    assert not any(agreeing(smol, None, answers))


def test_vllm_itself_reads_the_export_and_the_command_line(
    tmp_path: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    done = export_vllm(adapters["linear"], tmp_path / "sums")
    assert any("Loaded back by vLLM" in check and "210 layers" in check for check in done.checks)
    _, _, *options = shlex.split(done.usage.splitlines()[0])
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    assert (parsed.enable_lora, parsed.max_lora_rank) == (True, 8)
    assert [(module.name, module.path) for module in parsed.lora_modules] == [("sums", str(done.path))]
    # What its loader refuses is refused, also where our own list of rules has a gap.
    monkeypatch.setattr("afa_lora.serving.vllm.UNSERVED", ())
    with pytest.raises(ExportError, match="vLLM does not yet support DoRA"):
        export_vllm(adapters["dora"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
