"""What the tests of the PEFT integration share."""

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn


def adapted(model: nn.Module, config, fill: bool = True) -> PeftModel:
    """Inject `config`'s adapter, the same initial A and (with `fill`) B for every config, in eval mode."""
    torch.manual_seed(1)
    peft_model = get_peft_model(model, config)
    if fill:
        fill_b(peft_model)
    return peft_model.eval()


def fill_b(model: nn.Module, std: float = 0.1) -> None:
    """Give every B (weight and bias) values that a training might have left."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


@torch.no_grad()
def logits(model: nn.Module, token_ids: Tensor) -> Tensor:
    return model(input_ids=token_ids).logits


def gradients(model: nn.Module, token_ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=token_ids, labels=token_ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Tensor, wanted: Tensor, tolerance: float, what: str = "") -> None:
    """The largest difference is at most `tolerance` of the largest number."""
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error <= tolerance, f"{what} differs by {error:.2e} of its largest number"
