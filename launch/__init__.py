"""The commands: one per stage, and `demo` for all stages in succession."""

import gc
import os

# Of a GPU's memory, which the configurations' sizes are for. JAX reads this when it first uses a device; without it, it
# takes three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

# A command imports a million objects that stay. Looking among them for garbage takes a tenth of its start; `_main.main`
# sets the usual threshold again.
GC_THRESHOLD = gc.get_threshold()
gc.set_threshold(100_000)
