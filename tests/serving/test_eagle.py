"""A draft in a real vLLM, on the CPU: the text is the target's, and as many tokens are accepted as by our decoder."""

import importlib.util
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from afa_lora.eagle.decode import Chain, SpeculativeDecoding
from afa_lora.eagle.export import export_draft
from afa_lora.eagle.model import EagleDraft
from afa_lora.eagle.target import TargetEnds, features_of

pytestmark = [
    pytest.mark.serving,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-serving"),
]

LENGTH = 48  # tokens of an answer
PROMPTS = [[5, 6, 7, 8, 9], [40, 41, 42, 43, 44, 45, 46], [100, 101], [7] * 12]
LEARNT = 3  # of them the draft has learnt the answers, of the last one not
SHAPE = {
    "vocab_size": 320,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, PreTrainedConfig] = {  # vLLM's attention for the CPU wants heads of 32 channels
    "llama, wide heads, scaled rope": LlamaConfig(
        **SHAPE, hidden_size=64, head_dim=32, rope_parameters={**SCALED, "original_max_position_embeddings": 16}
    ),
    "qwen2, biases, tied": Qwen2Config(**SHAPE, hidden_size=128, tie_word_embeddings=True),
}


def save_target(folder: Path, kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def greedy(target: PreTrainedModel, prompt: list[int], length: int = LENGTH, **how: Any) -> Tensor:
    """(1, prompt + length)"""
    tokens: Tensor = target.generate(
        torch.tensor([prompt]), max_new_tokens=length, do_sample=False, eos_token_id=None, **how
    )
    return tokens


def learn(target: PreTrainedModel, ends: TargetEnds, steps: int) -> EagleDraft:
    """A draft that has learnt the target's answers nearly by heart, from true features and from its own."""
    torch.manual_seed(1)
    draft, answers = ends.new_draft(), [greedy(target, prompt) for prompt in PROMPTS[:LEARNT]]
    features = [features_of(target, tokens) for tokens in answers]
    optimizer = torch.optim.Adam(draft.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = torch.zeros(())
        for tokens, true in zip(answers, features, strict=True):
            embeddings, given, wanted = ends.embed(tokens[:, 1:]), true[:, :-1], true[:, 1:]
            for _ in range(3):
                predicted = draft(embeddings, given)
                classes = ends.logits(wanted)[0].argmax(-1)
                loss = loss + torch.nn.functional.smooth_l1_loss(predicted, wanted)
                loss = loss + 0.1 * torch.nn.functional.cross_entropy(ends.logits(predicted)[0], classes)
                own = torch.cat((true[:, :1], predicted[:, :-1].detach()), 1)
                given = torch.where(torch.rand(given.shape[:2])[..., None] < 0.5, own, true[:, :-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return draft.eval()


def served(target: Path, **options: Any) -> tuple[list[list[int]], dict[str, Any]]:
    """vLLM's greedy answers in float32, and its counters of speculative decoding."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
    from vllm import LLM, SamplingParams

    size = {"max_model_len": 128, "max_num_seqs": len(PROMPTS), "skip_tokenizer_init": True}
    llm = LLM(str(target), dtype="float32", enforce_eager=True, disable_log_stats=False, **size, **options)
    settings = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], settings, use_tqdm=False)
    counters = {
        metric.name.removeprefix("vllm:spec_decode_num_"): getattr(metric, "values", None) or metric.value
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name
    }
    llm.llm_engine.engine_core.shutdown()
    return [list(answer.outputs[0].token_ids) for answer in answers], counters


def counted(target: PreTrainedModel, draft: EagleDraft, length: int) -> dict[str, Any]:
    """The same counters by our decoder; a cycle at the end of an answer counts whole, as vLLM has it."""
    cycles: list[int] = []
    for prompt in PROMPTS:
        decoding, tokens = SpeculativeDecoding(draft, Chain(length)), 1  # the prefill gives the first
        greedy(target, prompt, LENGTH + length, custom_generate=decoding)
        for accepted in decoding.last.accepted:
            if tokens < LENGTH:
                cycles.append(accepted)
                tokens += accepted + 1
    return {
        "drafts": len(cycles),
        "draft_tokens": length * len(cycles),
        "accepted_tokens": sum(cycles),
        "accepted_tokens_per_pos": [sum(accepted > place for accepted in cycles) for place in range(length)],
    }


@pytest.mark.parametrize(("kind", "length"), list(zip(CONFIGS, (3, 4), strict=True)), ids=list(CONFIGS))
def test_the_text_is_the_targets_and_the_accepted_tokens_are_counted_alike(
    tmp_path: Path, kind: str, length: int
) -> None:
    target = save_target(tmp_path / "target", kind)
    draft = learn(target, TargetEnds.of(target, str(tmp_path / "target")), steps=100)
    draft.save_pretrained(tmp_path / "draft")
    done = export_draft(tmp_path / "draft", tmp_path / "out", to="vllm", model=str(tmp_path / "target"))
    with_draft, counters = served(
        tmp_path / "target",
        speculative_config={"method": "eagle", "model": str(done.path), "num_speculative_tokens": length},
    )
    without, nothing = served(tmp_path / "target")
    assert with_draft == without
    assert nothing == {}
    assert counters == counted(target, draft, length)
    assert counters["accepted_tokens_per_pos"][-1] > 0  # so later places and true features after them are right too
    assert counters["accepted_tokens"] < counters["draft_tokens"]


def test_the_command_line_is_vllms(tmp_path: Path) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    target = save_target(tmp_path / "target", next(iter(CONFIGS)))
    TargetEnds.of(target, str(tmp_path / "target")).new_draft().save_pretrained(tmp_path / "draft")
    done = export_draft(tmp_path / "draft", tmp_path / "out", to="vllm")
    program, serve, *options = shlex.split(done.usage)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    assert (program, serve, parsed.model_tag) == ("vllm", "serve", str(tmp_path / "target"))
    assert (parsed.speculative_config["method"], parsed.speculative_config["model"]) == ("eagle", str(done.path))
