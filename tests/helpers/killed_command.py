"""A command that kills itself: python -m tests.helpers.killed_command COMMAND FLAGS...

The environment variable KILL says when: `shard` after the first shard of a harvest, `checkpoint` when the second one of
a training is whole but has not reached the bucket. Shards are small whether it is set or not.
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
        send, sent = Checkpoints._send, []

        def first(self, saving, step):
            (_killed if sent else send)(self, saving, step)
            sent.append(step)

        Checkpoints._send = first
    del sys.argv[0]
    runpy.run_module(f"launch.{sys.argv[0]}", run_name="__main__", alter_sys=True)
