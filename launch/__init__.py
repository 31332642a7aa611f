"""The commands: one per stage, and `demo` for all stages in succession."""

import gc
import os

# Of a GPU's memory, which the sizes of the configurations are for; JAX takes three quarters otherwise. JAX reads it when
# it first uses a device.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")

# A command imports a million objects that stay. Looking among them for garbage takes a tenth of its start; `_main.main`
# sets the usual threshold again.
GC_THRESHOLD = gc.get_threshold()
gc.set_threshold(100_000)
