"""Runs the interpret stage in small batches and kills it: `python -m tests.helpers.killed_interpret WORKDIR WHERE`.

WHERE is "pass" (killed after the second save of the pass over the store), "exemplars" (killed once they are written) or
the folder of the results after whose first batch it is killed.
"""

import os
import signal
import sys
from pathlib import Path

from interp import stage
from interp.exemplars import index
from interp.exemplars.index_pass import blocks
from interp.exemplars.index_pass.pass_parts import PassParts
from interp.explainers import explainer
from maira_jax.run import files
from tests.helpers.interp_run import config


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    workdir, where = sys.argv[1:]
    write_json = files.write_json

    def write_and_die(path, value):
        write_json(path, value)
        if path.parent.name == where:
            kill()

    files.write_json = write_and_die
    explainer.FEATURE_BATCH = 5
    if where == "pass":
        index._SAVE_SECONDS, blocks._BLOCKS_PER_READ = 0.0, 1
        save, saves = PassParts.save, []

        def save_and_die(*args):
            save(*args)
            saves.append(args)
            if len(saves) == 2:
                kill()

        PassParts.save = save_and_die
    if where == "exemplars":
        stage._explain = kill
    stage.run(config(), Path(workdir))
