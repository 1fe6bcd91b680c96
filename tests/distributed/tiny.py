"""What one process and two ranks do alike: the model, the batches, the training."""

from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from afa_lora import AfaLoraConfig, Annealer, set_beta
from tests.conftest import DECODER, VOCAB_SIZE

# lm_head is in FSDP2's root group, whose weights stay gathered after a forward; the others are sharded again.
TARGETS = ["q_proj", "v_proj", "down_proj", "lm_head"]
KINDS = {
    "lora": {},
    "lora-outside": {"placement": "σ-A-B-σ"},
    "dora": {"use_dora": True},
    "dora-outside": {"use_dora": True, "placement": "σ-A-B-σ"},
}
STEPS, TOTAL_STEPS = 4, 8
SENTENCES = 4
BETAS = (1.0, 0.5, 0.0)


def base_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**DECODER, tie_word_embeddings=False))


def adapted_model(kind: str, **options: object) -> PeftModel:
    model = base_model()
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "anneal_end": 0.75, **KINDS[kind], **options}
    return get_peft_model(model, AfaLoraConfig(**settings))


def tokens(seed: int) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (SENTENCES, 12), generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, adapter: nn.Module, share: slice, steps: int = STEPS) -> Tensor:
    """Some optimizer steps of Algorithm 1, each on this process' share of the batch. Returns β of each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    annealer = Annealer(adapter, TOTAL_STEPS)
    betas = []
    for step in range(steps):
        annealer.set_step(step)
        betas.append(next(iter(annealer.states.values())).beta)
        batch = tokens(step)[share]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.tensor(betas)


def filled_model(kind: str, beta: float) -> PeftModel:
    """A model as it might be in the midst of a training."""
    model = adapted_model(kind)
    fill(model)
    set_beta(model, beta)
    return model


def one_step(model: nn.Module, share: slice) -> None:
    """An optimizer step that is the gradient itself: what divides by its size, as AdamW does, would hide faults."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    batch = tokens(0)[share]
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()


def adapter_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's part of a whole state dict."""
    return {key: tensor.detach().clone().contiguous() for key, tensor in state.items() if ".lora_" in key}


def fill(model: nn.Module) -> None:
    """Give every B values that a training might have left."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def counted(function: Callable[..., object], calls: list[int]) -> Callable[..., object]:
    """`function`, noting each call."""

    def wrapper(*args: object, **options: object) -> object:
        calls.append(1)
        return function(*args, **options)

    return wrapper
