"""Comparisons that have no prior: how much reports of studies without an earlier image speak of one, and steering away.

  python -m launch.demo --config=configs/history.py --workdir=runs/history

shows it on the phantom, whose model never compares where it is shown one image. So its studies without a prior image
are shown the current one in its place (`steer.prior_image`): each report then says what changed, on no ground. With
MAIRA-2, whose reports compare without any prior image, studies are steered as they are:

  python -m launch.harvest --config=configs/history.py:CHECKPOINT,STUDIES --workdir=runs/history

and so on, with CHECKPOINT and STUDIES as in configs/maira2.py. The rate is `history` in
evaluation/history/summary.json.
"""

from ml_collections import ConfigDict

from configs import maira2, phantom
from maira_jax.studies.concepts import COMPARISON

METHODS = (
    "add", "add_several", "ablate", "class_means", "difference_of_means", "reft_r1", "smallest_set", "random",
)  # fmt: skip


def get_config(paths: str = "") -> ConfigDict:
    config = maira2.get_config(paths) if paths else phantom.get_config()
    config.steer.update({"name": "history", "concepts": (COMPARISON,), "methods": METHODS, "studies": 100})
    if paths:
        config.steer.update({"prior_image": "none", "strengths": (-2.0, -1.0, -0.5), "positions": ("generated",)})
        return config
    # Where a prior image is known to the images' tokens, and the report still reads it there.
    config.harvest.site = "language.2.resid_post"
    config.steer.update({"prior_image": "repeated", "strengths": (-4.0, -2.0, -1.0), "positions": ("image",)})
    return config
