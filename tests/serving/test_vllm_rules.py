"""What vLLM cannot serve is refused by its rules, whether it is installed or not."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from afa_lora.serving import ExportError, export_adapter, export_vllm
from afa_lora.serving.vllm import MAX_LORA_RANKS, config_faults, max_lora_rank
from tests.serving.models import save_adapter, save_model


def test_the_bytes_are_those_of_the_adapter_and_the_command_serves_them(
    tmp_path: Path, adapter: Path, base: Path
) -> None:
    done = export_vllm(adapter, tmp_path / "my sums")
    plain = export_adapter(adapter, tmp_path / "adapter")
    for file in plain.path.iterdir():
        if file.suffix == ".safetensors":
            assert (done.path / file.name).read_bytes() == file.read_bytes()
        else:
            assert json.loads((done.path / file.name).read_text()).keys() == json.loads(file.read_text()).keys()
    command, _, *python = done.usage.splitlines()
    where = f"my sums={tmp_path / 'my sums'}"
    assert shlex.split(command) == [
        *("vllm", "serve", str(base), "--enable-lora", "--max-lora-rank", "8", "--lora-modules", where)
    ]
    compile("\n".join(python), "usage", "exec")
    assert f"LoRARequest('my sums', 1, '{tmp_path / 'my sums'}')" in python[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"r": 600}, "rank 600 (at most 512)"),
        ({"rank_pattern": {"v_proj": 513}}, "rank 513"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ],
)
def test_a_configuration_that_vllm_does_not_serve(settings: dict[str, Any], message: str) -> None:
    faults = config_faults(LoraConfig(**{"target_modules": ["v_proj"], **settings}))
    assert len(faults) == 1
    assert faults[0].startswith(message)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 9}}, {"bias": "none"}])
def test_a_configuration_that_vllm_serves(settings: dict[str, Any]) -> None:
    assert config_faults(LoraConfig(target_modules=["v_proj"], **settings)) == []


@pytest.mark.parametrize(("rank", "least"), [(1, 1), (4, 8), (8, 8), (17, 32), (300, 320), (512, 512)])
def test_the_least_max_lora_rank(rank: int, least: int) -> None:
    assert max_lora_rank(LoraConfig(r=1, rank_pattern={"v_proj": rank})) == least
    assert least in MAX_LORA_RANKS


def test_dora_is_refused_with_the_remedy_and_nothing_is_written(tmp_path: Path, base: Path) -> None:
    dora = save_adapter(tmp_path / "dora", base, use_dora=True)
    with pytest.raises(ExportError, match=r"no adapter with use_dora=True.*--to merged"):
        export_vllm(dora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_vllm_does_not_adapt_are_named(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", save_model(tmp_path / "base", "gpt2"), target_modules=["c_attn"])
    with pytest.raises(ExportError, match=r"Conv1D layer transformer\.h\.0\.attn\.c_attn.*--to merged"):
        export_vllm(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
