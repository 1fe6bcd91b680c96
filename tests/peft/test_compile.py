import pytest
import torch
from torch._dynamo.testing import CompileCounter

from afa_lora import AfaLoraConfig, Annealer
from tests.peft.helpers import adapted, assert_same


@pytest.mark.parametrize(("placement", "use_dora"), [("A-σ-B", False), ("σ-A-σ-B-σ", False), ("A-σ-B", True)])
def test_one_graph_for_the_annealing_and_one_recompilation_at_its_end(tiny_llama, token_ids, placement, use_dora):
    model = adapted(tiny_llama, AfaLoraConfig(r=4, target_modules="all-linear", placement=placement, use_dora=use_dora))
    model.train()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    annealer = Annealer(model, 20)
    graphs = []
    for step in range(9):
        annealer.set_step(step)
        loss = compiled(input_ids=token_ids, labels=token_ids).loss
        torch.testing.assert_close(loss, model(input_ids=token_ids, labels=token_ids).loss)
        graphs.append(counter.frame_count)
    assert graphs == [1] * 6 + [2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_compiled_loss_and_gradients_are_those_of_eager(token_ids, use_dora):
    """With inductor itself: it once dropped the scaling that stood as `alpha` of a sum."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    config = AfaLoraConfig(
        r=4, target_modules="all-linear", use_dora=use_dora, placement="σ-A-σ-B-σ", activation="relu"
    )
    model = adapted(LlamaForCausalLM(settings), config).train()
    torch._dynamo.reset()
    compiled = torch.compile(model)
    annealer = Annealer(model, 10)
    for step in range(3):
        annealer.set_step(step)
        losses, gradients = [], []
        for run in (compiled, model):
            model.zero_grad()
            losses.append(run(input_ids=token_ids, labels=token_ids).loss)
            losses[-1].backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*losses)
        for name, grad in gradients[1].items():
            assert_same(gradients[0][name], grad, 1e-5, name)
