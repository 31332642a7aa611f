"""The commands: one per stage, and `demo` for all stages in succession."""

import gc
import os
import sys

from launch import _early_signals

# `python -m` says so while it imports this package, before the command itself. In a benchmark nothing would replace
# these handlers.
if sys.argv[:1] == ["-m"] and "launch.bench" not in " ".join(sys.orig_argv):
    _early_signals.end_at_once()

# Of a GPU's memory, which the configurations' sizes are for. JAX reads this when it first uses a device; without it, it
# takes three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

# A command imports a million objects that stay. Looking among them for garbage takes a tenth of its start; `_main.main`
# sets the usual threshold again.
GC_THRESHOLD = gc.get_threshold()
gc.set_threshold(100_000)
