"""MAIRA-2 in Flax: model, checkpoints, preprocessing, studies and generation."""
