"""AFA-LoRA inside verl's FSDP2 engine. Users load it as `afa_lora.grpo.verl_plugin`."""
