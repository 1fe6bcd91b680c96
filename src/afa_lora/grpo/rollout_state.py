"""The completions that a trainer still has to learn from, carried over a resume in the midst of a generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from afa_lora.files import write_atomic

if TYPE_CHECKING:
    from afa_lora.grpo.trainer import ExactGRPOTrainer


class RolloutState(TrainerCallback):
    """Saves the present generation with every checkpoint, one file a process, and brings it back.

    TRL starts anew with a generation after a resume: β and the old log-probabilities would be those of another policy
    than the interrupted generation's, and the data would fall out of step.

    Args:
        trainer: whose generation it is. Put this callback before the one that seals the checkpoint.
    """

    def __init__(self, trainer: ExactGRPOTrainer) -> None:
        self._trainer = trainer
        self.checkpoint: str | None = None
        """The checkpoint that the training goes on from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trainer = self._trainer
        tensors: dict[str, Tensor] = {}
        others: list[dict[str, Any]] = []
        for number, batch in enumerate(trainer._buffered_inputs or []):
            others.append({name: value for name, value in batch.items() if not isinstance(value, Tensor)})
            tensors |= {
                f"{number}/{name}": value.detach().cpu().contiguous().clone()
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
        facts = {
            "forward_passes": trainer._step,
            "groups": trainer.groups,
            "equal_groups": trainer.equal_groups,
            "others": others,
        }
        checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        write_atomic(_file(checkpoint, args), save(tensors, {"facts": json.dumps(facts)}))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.checkpoint is None or not (file := _file(Path(self.checkpoint), args)).is_file():
            return
        trainer = self._trainer
        with safe_open(str(file), "pt") as stored:
            facts = json.loads(stored.metadata()["facts"])
            batches = [dict(others) for others in facts["others"]]
            for key in stored.keys():  # noqa: SIM118 - no mapping
                number, _, name = key.partition("/")
                batches[int(number)][name] = stored.get_tensor(key).to(args.device)
        trainer._step = facts["forward_passes"]
        trainer.groups, trainer.equal_groups = facts["groups"], facts["equal_groups"]
        trainer._buffered_inputs = batches or None
        trainer.use_vllm = any("importance_sampling_ratio" in batch for batch in batches)  # TRL reads the ratio then


def _file(checkpoint: Path, args: TrainingArguments) -> Path:
    return checkpoint / f"rollout_state_{args.process_index}.safetensors"
