"""A tiny real training with `transformers.Trainer`, also runnable as a process that can be killed and started again."""

import sys
from pathlib import Path

import torch
from peft import get_peft_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from afa_lora import AfaLoraConfig, AnnealingCallback


class Tokens(Dataset):
    """Random sentences, a pure function of the index."""

    def __init__(self, size: int = 64) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 64, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def tiny_model(**options):
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = AfaLoraConfig(**{"r": 4, "target_modules": "all-linear", "anneal_end": 0.5, **options})
    return get_peft_model(LlamaForCausalLM(settings), config)


def make_trainer(folder: Path, model=None, callbacks=(), **arguments) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "dataloader_num_workers": 0,
        **arguments,
    }
    return Trainer(
        model=tiny_model() if model is None else model,
        args=TrainingArguments(**settings),
        train_dataset=Tokens(),
        eval_dataset=Tokens(8),
        callbacks=[AnnealingCallback(), *callbacks],
    )


class Announce(TrainerCallback):
    """Tell the parent process where training stands, so that it can kill this one in the midst of it."""

    def on_step_end(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    trainer = make_trainer(output, model=tiny_model(use_dora=True, lora_dropout=0.1), callbacks=[Announce()])
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")) or None)
    trainer.save_model(str(output / "final"))
