"""Training: the optimizer, checkpoints, metrics and stop signals around one readable loop."""
