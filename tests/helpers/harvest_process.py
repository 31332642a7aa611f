"""Harvests in a process of its own: python -m tests.helpers.harvest_process MANIFEST SITE WORKDIR READERS [--kill].

SITE is a site of the language model, or the name of an image encoder, each of whose patches is harvested.
With --kill it kills itself as soon as its first shard is written.
"""

import os
import signal
import sys
from pathlib import Path

from configs import base
from maira_jax.encoders import ENCODERS
from sae.activations import harvest, store

if __name__ == "__main__":
    manifest, site, workdir, readers, *kill = sys.argv[1:]
    store.SHARD_ROWS, store.CHUNK_ROWS = 128, 64
    config = base.get_config()
    config.studies = base.studies("manifest", path=manifest)
    config.harvest.update({"batch_size": 4, "readers": int(readers)})
    config.harvest.update({"encoder": site, "rows": "patches"} if site in ENCODERS.names() else {"site": site})
    if kill:
        write = store.StoreWriter.write

        def last(self, shard, values):
            write(self, shard, values)
            os.kill(os.getpid(), signal.SIGKILL)

        store.StoreWriter.write = last
    harvest.run(config, Path(workdir))
