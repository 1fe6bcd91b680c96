"""GRPO: reinforcement learning with verifiable rewards, on one machine by TRL, beyond it by verl."""
