"""Rollouts by vLLM: what it may sample from while the adapter is still annealing, and how it gets there."""
