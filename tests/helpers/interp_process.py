"""A command of `interp` with small blocks, so that several processes have work: `... interp_process COMMAND FLAGS...`.

Where the environment variable KILLED names a process, it kills itself after it has saved twice in the exemplar pass.
"""

import os
import runpy
import signal
import sys

import interp.stage
from interp.exemplars import index
from interp.exemplars.index_pass import blocks
from interp.exemplars.index_pass.pass_parts import PassParts
from interp.explainers import explainer
from interp.medsae import vectors

# What the tests also set for the one process that they compare with.
SIZES = (
    (blocks, "_BLOCKS_PER_READ", 1),
    (interp.stage, "BLOCK_TOKENS", 512),
    (explainer, "FEATURE_BATCH", 5),
    (vectors, "_BLOCK_TOKENS", 100),
)


def kill_after_two_saves():
    index._SAVE_SECONDS = 0.0
    save, saves = PassParts.save, []

    def save_and_die(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    PassParts.save = save_and_die


if __name__ == "__main__":
    for module, name, value in SIZES:
        setattr(module, name, value)
    if f"--process={os.environ.get('KILLED')}" in sys.argv:
        kill_after_two_saves()
    command = sys.argv.pop(1)
    runpy.run_module(f"launch.{command}", run_name="__main__", alter_sys=True)
