"""β over training: a callback for Hugging Face trainers, an `Annealer` for any other loop."""
