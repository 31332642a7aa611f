"""A harvest on meshes stores what one device stores. Argument: an empty folder."""

import sys
from pathlib import Path


from configs import phantom
from maira_jax.checkpoint import convert
from sae.activations import harvest, store
from tests.helpers.sae import make_model
from tests.helpers.tiny_model import relative


def main(directory: Path) -> None:
    store.SHARD_ROWS, store.CHUNK_ROWS = 512, 64
    config = phantom.get_config()
    config.studies.n = 20  # so that the last batch is filled up
    make_model(directory / "hf", config.studies, heads=8)
    config.model.checkpoint = str(directory / "hf")
    config.harvest.update({"site": "language.1.resid_post", "batch_size": 8})
    stores = {}
    for mesh in ((1, 1), (8, 1), (2, 4), (1, 8)):
        workdir = directory / "x".join(map(str, mesh))
        config.mesh = mesh
        convert.run(config, workdir)
        harvest.run(config, workdir)
        stores[mesh] = store.ActivationStore.open(workdir / "activations")
    one = stores.pop((1, 1))
    expected = one.read(0, one.n_tokens)
    for mesh, split in stores.items():
        assert split.tokens.equals(one.tokens) and split.studies.equals(one.studies)
        difference = relative(split.read(0, one.n_tokens), expected)
        print(mesh, difference)
        assert difference < 5e-6  # sums of float32 in another order
    print("equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
