"""TRL's trainers need the config and the callback, and nothing else."""

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from afa_lora import AfaLoraConfig, AnnealingCallback, anneal_states
from tests.training.trainers import tiny_model

trl = pytest.importorskip("trl")

LENGTH = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
QUIET = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
EXPECTED = pytest.approx([1 - 1 / 1.8, 0, 0, 0, 0, 0])


def words(n: int) -> str:
    return " ".join(f"t{i}" for i in torch.randint(3, 64, (n,)).tolist())


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", bos_token="t2")


def logged_betas(trainer) -> list[float]:
    return [entry["afa/beta"] for entry in trainer.state.log_history if "loss" in entry]


def test_sft_under_gradient_checkpointing_and_accumulation(tmp_path, tokenizer):
    settings = {**LENGTH, **QUIET, "gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    trainer = trl.SFTTrainer(
        tiny_model().unload(),
        args=trl.SFTConfig(output_dir=str(tmp_path), **settings),
        train_dataset=Dataset.from_list([{"prompt": words(4), "completion": words(3)} for _ in range(24)]),
        processing_class=tokenizer,
        peft_config=AfaLoraConfig(r=4, target_modules="all-linear"),
        callbacks=[AnnealingCallback()],
    )
    trainer.train()
    assert logged_betas(trainer) == EXPECTED
    assert not hasattr(trainer.model.merge_and_unload(), "peft_config")


def test_dpo_keeps_its_reference_adapter_where_it_was(tmp_path, tokenizer):
    model = get_peft_model(tiny_model().unload(), AfaLoraConfig(r=4, target_modules="all-linear"))
    model.peft_config["default"].beta = 0.5
    pairs = [{"prompt": words(4), "chosen": words(3), "rejected": words(3)} for _ in range(12)]
    trainer = trl.DPOTrainer(
        model,
        args=trl.DPOConfig(output_dir=str(tmp_path), **LENGTH, **QUIET),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[AnnealingCallback()],
    )
    trainer.train()
    assert logged_betas(trainer) == EXPECTED
    assert {name: state.beta for name, state in anneal_states(trainer.model).items()} == {"default": 0.0, "ref": 0.5}


def test_grpo_generates_through_the_live_activation(tmp_path, tokenizer):
    trainer = trl.GRPOTrainer(
        tiny_model().unload(),
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            **LENGTH,
            **QUIET,
            num_generations=2,
            max_completion_length=6,
            steps_per_generation=2,
            learning_rate=1e-3,
        ),
        train_dataset=Dataset.from_list([{"prompt": words(4)} for _ in range(12)]),
        processing_class=tokenizer,
        peft_config=AfaLoraConfig(r=4, target_modules="all-linear", anneal_end=4),
        callbacks=[AnnealingCallback()],
    )
    seen = []
    generate = trainer._generate

    def spy(*args, **kwargs):
        seen.append((trainer.state.global_step, anneal_states(trainer.model)["default"].beta))
        return generate(*args, **kwargs)

    trainer._generate = spy
    trainer.train()
    assert seen == [(0, 1.0), (2, 0.5), (4, 0.0)]
    assert logged_betas(trainer) == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
