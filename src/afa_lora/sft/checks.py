"""What `SFTTrainer` would refuse when it is made, found before."""

from __future__ import annotations

from collections.abc import Iterator

from transformers.trainer_utils import IntervalStrategy
from transformers.utils import is_liger_kernel_available
from trl import SFTConfig

from afa_lora.data import Items
from afa_lora.tuning.checks import reporting_faults


def training_faults(args: SFTConfig, items: Items | None) -> Iterator[str]:
    """What `SFTTrainer` would refuse when it is made."""
    if args.max_length is None and (args.packing or args.eval_packing):
        key = "packing" if args.packing else "eval_packing"
        yield f"train.{key}=true needs train.max_length, the length of a row; it is null (empty)."
    if items and not items.test and args.eval_strategy != "no":
        strategy = IntervalStrategy(args.eval_strategy).value
        yield (
            f"train.eval_strategy={strategy!r} needs test items, and there are none. Raise data.test_items, or set "
            "train.eval_strategy=no."
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        yield "train.use_liger_kernel=true needs the package liger-kernel. Run: pip install liger-kernel"
    yield from reporting_faults(args)
