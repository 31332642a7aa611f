"""Training: the loss and its gradients, the step, schedules and presets, checkpoints, and the stage."""
