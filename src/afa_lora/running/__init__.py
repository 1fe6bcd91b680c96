"""What every training run needs around its Trainer: checkpoints to trust, graceful stops, metrics, provenance."""
