"""What one process and two ranks do alike with a tiny chat model: prompts to answer, data to train on, the trainer."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from trl import SFTConfig, SFTTrainer

from afa_lora import AfaLoraConfig, AnnealingCallback
from afa_lora.data import Sample
from afa_lora.evaluation import evaluate, exact_match

SAMPLES = [Sample(({"role": "user", "content": "ab" * length},), "yes") for length in (3, 20, 1, 9, 13, 4, 2)]
BATCHES = [(7, 1), (7, 3), (5, 2), (1, 2), (0, 2)]  # items, batch size
RECORDS = [{"prompt": f"Say yes to {'x' * (i % 5)}", "completion": "yes" * (1 + i % 3)} for i in range(32)]


def load(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model that ends many of its answers early, as real ones do."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.eos_token_id = list(range(2, model.config.vocab_size, 7))
    return model, AutoTokenizer.from_pretrained(folder)


def answers(model: PreTrainedModel, tokenizer: Any) -> list[list[tuple[str, float]]]:
    """The answers and scores for each of BATCHES; the progress must add up to the items."""
    found = []
    for items, batch_size in BATCHES:
        counts: list[int] = []
        accuracy = evaluate(
            model,
            tokenizer,
            SAMPLES[:items],
            exact_match,
            max_new_tokens=6,
            batch_size=batch_size,
            advance=counts.append,
        )
        assert sum(counts) == items
        found.append([(answer.given, answer.score) for answer in accuracy.answers])
    return found


def add_adapter(model: PreTrainedModel) -> PeftModel:
    set_seed(0)
    return get_peft_model(model, AfaLoraConfig(r=4, target_modules="all-linear", use_dora=True, anneal_end=0.5))


def make_trainer(model: PeftModel, tokenizer: Any, output: Path, batch_size: int, **options: Any) -> SFTTrainer:
    """Six steps; β is 0 from the third on."""
    args = SFTConfig(
        str(output),
        **{
            "max_steps": 6,
            "per_device_train_batch_size": batch_size,
            "learning_rate": 1e-2,
            "save_steps": 2,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 3,
            **options,
        },
    )
    data = Dataset.from_list(RECORDS)
    return SFTTrainer(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=data.select(range(5)),
        processing_class=tokenizer,
        callbacks=[AnnealingCallback()],
    )
