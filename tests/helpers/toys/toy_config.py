"""A run that uses everything that the files next to this one register."""

import ml_collections
import toy_method  # noqa: F401  (registers itself)
import toy_reader
import toy_scorer  # noqa: F401  (registers itself)
import toy_variant  # noqa: F401  (registers itself)

from configs import base


def get_config(folder: str = "") -> ml_collections.ConfigDict:
    config = base.get_config()
    config.model.checkpoint = "phantom"
    config.studies = toy_reader.TabSeparatedSection.defaults()
    config.studies.update({"source": "tab_separated", "path": folder})
    config.harvest.update({"site": "language.2.resid_post", "batch_size": 16})
    config.sae.update({"kind": "half_of_strongest", "expansion": 2, "k": 8})
    config.train.update({"steps": 100, "batch_size": 256, "checkpoint_every": 100, "evaluate_every": 0})
    config.train.update({"loss_recovered_studies": 4, "preset": "scaled"})
    config.interpret.scorers = ("detection", "quoted_words")
    config.interpret.update(
        {"min_contexts": 10, "n_explain": 20, "n_score": 20, "n_control": 2, "bootstrap": 20, "min_studies": 3}
    )
    config.steer.update({"methods": ("add", "add_encoder"), "strengths": (1.0,), "studies": 2, "top": 2})
    config.steer.max_new_tokens = 16
    return config
