"""The commands: one a stage, and the whole path as `demo`."""
