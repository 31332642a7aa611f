"""From exemplars to explanations: what an explainer is shown, rules found offline, and a language model."""
