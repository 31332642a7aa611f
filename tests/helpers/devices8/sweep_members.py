"""Members of a sweep on two meshes of 8 devices, compared with the same autoencoders trained alone on one of them."""

import dataclasses

from sae.sweep.member_trainer import MemberTrainer
from tests.sae.sweep.member_trainer_test import assert_equal_to_alone, configs

if __name__ == "__main__":
    for shape in ((4, 2), (1, 8)):
        for kind in ("relu", "batch_top_k"):
            on_mesh = [(sae, dataclasses.replace(train, mesh=shape)) for sae, train in configs(kind)]
            assert_equal_to_alone(MemberTrainer(on_mesh), kind)
