"""The adapter by itself, read by PEFT in a process that has never heard of this library."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from afa_lora import load_adapter
from afa_lora.serving import ExportError, export_adapter
from tests.serving.models import save_adapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
STOCK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, inputs, *adapters = sys.argv[1:]
for adapter in adapters:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        torch.save(model(torch.load(inputs)).logits, adapter + ".logits")
assert "afa_lora" not in sys.modules
"""


@pytest.mark.integration
def test_stock_peft_computes_the_same(tmp_path: Path, base: Path) -> None:
    token_ids = AutoTokenizer.from_pretrained(base)("we're of the other theme", return_tensors="pt").input_ids
    torch.save(token_ids, tmp_path / "inputs")
    trained = {kind: save_adapter(tmp_path / kind, base, use_dora=kind == "dora") for kind in ("lora", "dora")}
    exported = [str(export_adapter(trained[kind], tmp_path / f"{kind}-out").path) for kind in trained]
    subprocess.run([sys.executable, "-c", STOCK, base, tmp_path / "inputs", *exported], check=True)
    for kind, adapter in trained.items():
        with torch.no_grad():
            expected = load_adapter(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(token_ids).logits
        torch.testing.assert_close(torch.load(tmp_path / f"{kind}-out.logits"), expected, atol=1e-5, rtol=1e-5)


def test_only_two_files_no_foreign_key_and_the_weights_to_the_bit(tmp_path: Path, base: Path) -> None:
    trained = save_adapter(tmp_path / "trained", base, rank_pattern={"v_proj": 9}, use_rslora=True)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(trained / WEIGHTS).items()}
    save_file(tensors, trained / WEIGHTS)
    (trained / "optimizer.pt").write_bytes(b"of the Trainer")
    done = export_adapter(trained, tmp_path / "out")
    assert {path.name for path in done.path.iterdir()} == {CONFIG, WEIGHTS}
    assert (done.path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    config = json.loads((done.path / CONFIG).read_text())
    assert set(config) <= {field.name for field in fields(LoraConfig)}
    assert config["peft_type"] == "LORA"
    assert config["rank_pattern"] == {"v_proj": 9}


def test_a_foreign_key_is_left_out(tmp_path: Path, adapter: Path, base: Path) -> None:
    trained = save_adapter(tmp_path / "trained", base)
    config = json.loads((trained / CONFIG).read_text())
    (trained / CONFIG).write_text(json.dumps({**config, "of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="of_tomorrow"):
        done = export_adapter(trained, tmp_path / "out")
    assert "of_tomorrow" not in json.loads((done.path / CONFIG).read_text())


def test_the_base_model_that_it_was_checked_with_is_named(tmp_path: Path, adapter: Path, base: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(base)
    done = export_adapter(adapter, tmp_path / "out", base=str(link))
    assert json.loads((done.path / CONFIG).read_text())["base_model_name_or_path"] == str(link)


def test_other_weights_are_found_out(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scramble(source: Path, target: Path) -> None:
        save_file({name: tensor * 2 for name, tensor in load_file(source).items()}, target)

    monkeypatch.setattr("afa_lora.serving.adapter.shutil.copyfile", scramble)
    with pytest.raises(ExportError, match="another function"):
        export_adapter(adapter, tmp_path / "out")
    assert not list(tmp_path.iterdir())
