"""What a training would do and take, found out without training."""

from afa_lora.sft.planning.plan import Plan, plan_sft, print_plan

__all__ = ["Plan", "plan_sft", "print_plan"]
