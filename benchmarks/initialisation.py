"""What an initialisation that moves part of W₀ into s·BA costs at β = 1: the loss of SmolLM2-135M before any training.

    python benchmarks/initialisation.py

`AfaLoraConfig` refuses these initialisations; here they are let through to see why. Writes
`benchmarks/results/initialisation.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from measure import provenance
from peft import get_peft_model

import afa_lora.peft.config
from afa_lora import AfaLoraConfig, set_beta
from afa_lora.models import load_model

INITIALISATIONS = (True, "gaussian", "orthogonal", "olora", "pissa_niter_4")
TEXT = Path(__file__).parents[1] / "PAPER.md"
TOKENS = 256


@torch.no_grad()
def losses(initialisation: bool | str) -> dict[str, float]:
    """Loss in nats per token with the fresh adapter at β = 0 and at β = 1."""
    torch.manual_seed(0)
    model, tokenizer = load_model("smollm2-135m")
    ids = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :TOKENS]
    config = AfaLoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=initialisation)
    adapted = get_peft_model(model, config)
    found = {}
    for beta in (0.0, 1.0):
        set_beta(adapted, beta)
        found[f"beta_{beta:g}"] = round(float(adapted(input_ids=ids, labels=ids).loss), 3)
    return found


def main() -> None:
    afa_lora.peft.config.LINEAR_STARTS = INITIALISATIONS  # type: ignore[assignment]
    found = {str(name): losses(name) for name in INITIALISATIONS}
    for name, loss in found.items():
        print(f"{name:<16} loss {loss['beta_0']:.3f} at β = 0, {loss['beta_1']:.3f} at β = 1")
    out = Path(__file__).parent / "results" / "initialisation.json"
    out.parent.mkdir(exist_ok=True)
    document = {"provenance": provenance(torch.device("cpu")), "loss": found}
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
