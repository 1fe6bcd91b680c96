"""accelerate itself reads the configurations that are shipped, and they say what their names promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
KINDS = {  # name: kind, processes, machines
    "gpu_1": (DistributedType.NO, 1, 1),
    "ddp_8gpu": (DistributedType.MULTI_GPU, 8, 1),
    "fsdp2_8gpu": (DistributedType.FSDP, 8, 1),
    "fsdp2_2x8gpu": (DistributedType.FSDP, 16, 2),
    "cpu_2": (DistributedType.MULTI_GPU, 2, 1),
}


def test_every_file_is_known_here() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {f"{name}.yaml" for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it_and_its_head_says_how_to_run_it(name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(file))  # raises on an unknown key
    assert isinstance(config, ClusterConfig)
    assert (config.distributed_type, config.num_processes, config.num_machines) == KINDS[name]
    assert config.mixed_precision == "no"
    assert f"accelerate launch --config_file recipes/accelerate/{file.name} " in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, (kind, *_) in KINDS.items() if kind == DistributedType.FSDP])
def test_fsdp_is_the_second_and_wraps_decoder_layers(name: str) -> None:
    settings = load_config_from_file(str(FOLDER / f"{name}.yaml")).fsdp_config
    known = {action.dest for action in launch_command_parser()._actions}
    assert settings.keys() <= known, f"accelerate launch has no {sorted(settings.keys() - known)}"
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in settings  # the model's own, whatever the family
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_two_machines_differ_in_rank_alone() -> None:
    config = load_config_from_file(str(FOLDER / "fsdp2_2x8gpu.yaml"))
    assert config.main_process_ip
    assert config.main_process_port
    assert config.machine_rank == 0
    one = load_config_from_file(str(FOLDER / "fsdp2_8gpu.yaml"))
    assert one.fsdp_config == config.fsdp_config


@pytest.mark.integration
@pytest.mark.slow
def test_the_one_for_the_cpu_starts_two_processes(tmp_path: Path) -> None:
    program = tmp_path / "who.py"
    program.write_text(
        "from accelerate import Accelerator\n"
        "state = Accelerator().state\n"
        "print(f'{state.process_index} of {state.num_processes}, {state.device.type}, {state.backend};')\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "cpu_2.yaml")]
    port = ["--main_process_port", "0"]  # any free one
    done = subprocess.run(
        [*command, *port, str(program)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 2, cpu, gloo;" in done.stdout
    assert "1 of 2, cpu, gloo;" in done.stdout
