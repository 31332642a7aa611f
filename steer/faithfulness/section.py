"""The `faithfulness` section of the configuration."""

from maira_jax.run.config import Section, setting


class FaithfulnessSection(Section, name="faithfulness"):
    """Which explanations are put to the test of amplifying what they explain; how, the section steer says."""

    n: int = setting(
        128, "Features that are amplified, at random among those with a detection score; of each control as many.", ge=1
    )
    studies: int = setting(
        8, "Held-out studies; each feature is amplified in the report on one of them, taken in turn.", ge=1
    )
    bootstrap: int = setting(1000, "Resamples of the features for each interval.", ge=1)
