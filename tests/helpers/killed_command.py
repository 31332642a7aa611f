"""A command that kills itself: python -m tests.helpers.killed_command COMMAND FLAGS...

The environment variable KILL says when: `shard` after the first shard of a harvest, `checkpoint` when the second one of
a training is there but for its mark. Shards are small whether it is set or not.
"""

import os
import runpy
import signal
import sys

from sae.activations import store
from sae.training.checkpoints import Checkpoints


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    store.SHARD_ROWS, store.CHUNK_ROWS = 1024, 64
    if os.environ.get("KILL") == "shard":
        write = store.StoreWriter.write
        store.StoreWriter.write = lambda self, *shard: (write(self, *shard), _killed())
    if os.environ.get("KILL") == "checkpoint":
        mark, marked = Checkpoints._mark, []

        def first(self, step, scale):
            (_killed if marked else mark)(self, step, scale)
            marked.append(step)

        Checkpoints._mark = first
    del sys.argv[0]
    runpy.run_module(f"launch.{sys.argv[0]}", run_name="__main__", alter_sys=True)
