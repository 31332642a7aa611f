"""The stages' programs for a tiny model, on the first device of this machine."""

import jax

from configs import phantom
from launch.benches.stage_programs import Setting
from tests.helpers.tiny_model import CFG


def setting() -> Setting:
    config = phantom.get_config()
    config.steer.top, config.harvest.site = 1, "language.2.resid_post"
    devices = jax.devices()[:1]
    found = Setting.of(config, devices, devices, (1, 1), memory=2**34)
    return Setting(config, CFG, found.mesh, found.training, length=32, images=1)
