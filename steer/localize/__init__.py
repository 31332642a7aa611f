"""Where in the model, and at which tokens, each concept can be read and can be written: `launch.localize`."""
