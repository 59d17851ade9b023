"""Training: optimizers, batches, checkpoints, run directories."""
