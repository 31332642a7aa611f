"""What is localized in a small random model."""

from ml_collections import ConfigDict

from configs import phantom


def make_config() -> ConfigDict:
    config = phantom.get_config()
    config.studies.update({"n": 40, "size": 28})
    config.localize.update(
        {
            "sites": ("projector.1", "language.embed", "language.1.resid_post"),
            "sections": ("frontal",),
            "autoencoder": False,
            "top": 2,
            "min_studies": 2,
            "write_studies": 3,
            "strengths": (1.0,),
            "bootstrap": 20,
            "batch_size": 8,
            "batch_studies": 3,
            "batch_rows": 3,
        }
    )
    config.steer.max_new_tokens = 8
    return config
