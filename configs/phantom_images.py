"""The phantom, read and steered where the image enters its language model; nothing is stored of the text.

python -m launch.demo --config=configs/phantom_images.py --workdir=runs/images
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
    config = phantom.get_config()
    config.harvest.site = "language.embed"
    config.harvest.token_filter = "frontal"
    # What is in an image is said by few directions, all of them in every one of its tokens.
    config.sae.expansion = 2
    config.sae.k = 8
    config.steer.concepts = ()
    config.steer.top = 20
    config.steer.methods = (
        "add", "add_several", "clamp", "class_means", "ablate", "project", "difference_of_means", "probe", "random",
        "prompt",
    )  # fmt: skip
    config.steer.strengths = (-1.0, 1.0)
    config.steer.batch_rows = 32
    return config
