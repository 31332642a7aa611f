"""The phantom's configuration, small: `--config=tests/helpers/pod_config.py`.

Where the environment variable KILLED names a process of the run, that one is killed as soon as it has written a shard
or a part, as by a host that is taken away.
"""

import os
import signal

from configs import phantom
from maira_jax.inputs import batches
from maira_jax.run import jsonl, processes
from sae.activations import store

SHARD_ROWS, CHUNK_ROWS = 128, 64  # so that few studies fill several shards
N_LENGTHS = 2  # each takes programs of its own in every process


def get_config():
    store.SHARD_ROWS, store.CHUNK_ROWS = SHARD_ROWS, CHUNK_ROWS
    batches._N_LENGTHS = N_LENGTHS
    config = phantom.get_config()
    config.studies.update({"n": 12, "seed": 2, "size": 28})
    config.harvest.update({"site": "language.1.resid_post", "batch_size": 2, "held_out_fraction": 0.5, "readers": 0})
    config.generate.update({"task": "grounded", "save_images": True, "batch_size": 2, "max_new_tokens": 12})
    config.steer.update({"name": "test", "features": (4, 11), "concepts": (), "methods": ("add", "clamp", "random")})
    config.steer.update(
        {"studies": 5, "strengths": (-4.0, 4.0), "unit": "residual_norm", "batch_studies": 1, "workers": 1}
    )
    config.steer.update({"batch_rows": 6, "max_new_tokens": 12})
    return config


def _killed_after(write):
    def last(*arguments):
        write(*arguments)
        if str(processes.index()) == os.environ["KILLED"]:
            os.kill(os.getpid(), signal.SIGKILL)

    return last


if "KILLED" in os.environ:
    for writer in (store.StoreWriter, jsonl.PartFiles):
        writer.write = _killed_after(writer.write)
