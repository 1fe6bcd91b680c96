"""AFA adapters on the draft of another trainer, here an EAGLE-3 draft of vllm-project/speculators.

    pip install afa-lora speculators        # run with speculators 0.9.0
    python examples/eagle_speculators.py --verifier meta-llama/Llama-3.1-8B-Instruct --out draft

Three places in a training change: adapters go on the draft before the trainer gets it (`adapt`), β is set before each
forward (`Annealer`), and the adapters are merged before the draft is saved (`merge_and_unload`). The draft's own
weights train on beside them. What is saved is an ordinary draft.

speculators' own trainer takes the adapted draft as it is, and counts the steps that the annealer needs:

    adapted = adapt(draft, r=64, lora_alpha=128)
    annealer = Annealer(adapted, total_steps=epochs * len(train_loader))
    trainer = Trainer(draft, config, train_loader, val_loader)
    draft.register_forward_pre_hook(lambda *_: annealer.set_step(trainer.global_step))
    trainer.run_training()
    annealer.set_step(annealer.total_steps)
    adapted.merge_and_unload().save_pretrained("draft")

Its checkpoints of unfinished epochs hold the adapters beside the weights: to go on with them, `adapt` first. The loop
below stands in for that trainer, which needs an accelerator, and random tokens for your conversations.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from afa_lora import AfaLoraConfig, Annealer


def adapt(draft: nn.Module, **settings: Any) -> PeftModel:
    """Put an adapter on each linear layer of ``draft`` that trains; its own weights train on.

    Args:
        draft: any module. It is changed in place; what does not train, embeddings say, stays frozen.
        settings: those of `AfaLoraConfig`.

    Returns:
        what sets β and merges: ``merge_and_unload()`` gives ``draft`` back with plain linear layers.
    """
    trained = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    layers = [
        name for name, layer in draft.named_modules() if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    ]
    adapted = get_peft_model(draft, AfaLoraConfig(target_modules=layers, **settings))
    for parameter in trained:  # PEFT has frozen all but the adapters
        parameter.requires_grad_(True)
    return adapted


def new_draft(verifier: PreTrainedModel, name: str, layers: list[int]) -> Any:
    """An untrained EAGLE-3 draft of one layer, in the verifier's vocabulary."""
    from speculators import Eagle3DraftModel

    config = copy.deepcopy(verifier.config)
    config.num_hidden_layers = 1
    return Eagle3DraftModel.from_training_args(
        config,
        verifier_name_or_path=name,
        draft_vocab_size=config.vocab_size,
        norm_before_residual=False,
        target_layer_ids=layers,
        ttt_steps=3,
        draft_attn_impl="eager",  # its default, flex attention, is compiled for an accelerator
    )


@torch.no_grad()
def batch(verifier: PreTrainedModel, layers: list[int], length: int = 64) -> dict[str, Tensor]:
    """What the draft reads of one text: at i the token x_{i+1}, the hidden states g_i, and the last one y_{i+1}."""
    tokens = torch.randint(verifier.config.vocab_size, (1, length), device=verifier.device)
    last: list[Tensor] = []  # before the final norm, which the draft applies itself
    hook = verifier.base_model.norm.register_forward_pre_hook(lambda norm, inputs: last.append(inputs[0]))
    states = verifier.base_model(tokens, output_hidden_states=True).hidden_states
    hook.remove()
    return {
        "input_ids": tokens[:, 1:],
        "hidden_states": torch.cat([states[layer] for layer in layers], -1)[:, :-1],
        "verifier_last_hidden_states": last[0][:, 1:],
        "loss_mask": torch.ones(1, length - 1, device=tokens.device),
        "document_ids": torch.zeros(1, length - 1, dtype=torch.long, device=tokens.device),
        "position_ids": torch.arange(1, length, device=tokens.device)[None],
    }


def train(
    draft: nn.Module, adapted: PeftModel, batches: list[dict[str, Tensor]], lr: float = 1e-3, **options: Any
) -> list[float]:
    """One step for each batch, with β falling from 1 to 0 over the window of the adapter's configuration.

    Args:
        draft: gives (drafted tokens, loss, metrics).
        adapted: what `adapt` gave.
        batches: keyword arguments of the draft's forward.
        lr: the learning rate.
        options: more keyword arguments, the same in each step.

    Returns:
        the loss of each step.
    """
    annealer, losses = Annealer(adapted, total_steps=len(batches)), []
    optimizer = torch.optim.AdamW([parameter for parameter in draft.parameters() if parameter.requires_grad], lr=lr)
    for step, inputs in enumerate(batches):
        annealer.set_step(step)  # before the forward
        _, loss, _ = draft(**inputs, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    annealer.set_step(len(batches))  # β = 0, also where the window ends with the training
    return losses


def main(arguments: list[str] | None = None) -> None:
    """Train a draft on random tokens and save it."""
    parser = argparse.ArgumentParser(description="An EAGLE-3 draft of speculators with AFA adapters.")
    parser.add_argument("--verifier", required=True, help="hub id or folder of the model that the draft is for")
    parser.add_argument("--out", required=True, help="folder of the draft")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args(arguments)
    verifier = AutoModelForCausalLM.from_pretrained(given.verifier, dtype=torch.float32).eval()
    count = verifier.config.num_hidden_layers
    layers = sorted({min(2, count - 1), count // 2, max(count - 3, 1)})  # as speculators chooses them, in any depth
    draft = new_draft(verifier, given.verifier, layers)
    adapted = adapt(draft, r=16, lora_alpha=32, activation="silu", placement="A-σ-B", anneal_end=0.5)
    loss = {"loss_fn": "kl_div", "loss_implementation": "eager", "ttt_steps": 3, "ttt_step_loss_decay": 1.0}
    options, _ = draft.get_trainer_kwargs(**loss)
    losses = train(draft, adapted, [batch(verifier, layers) for _ in range(given.steps)], **options)
    adapted.merge_and_unload().save_pretrained(given.out)
    print(f"loss {losses[0]:.3f} → {losses[-1]:.3f} in {given.steps} steps; the draft is in {given.out}")


if __name__ == "__main__":
    main()
