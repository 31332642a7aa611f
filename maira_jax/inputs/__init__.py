"""From studies to the model's input: images, prompts, tokens, and the padded batches that every stage uses."""
