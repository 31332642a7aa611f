"""The commands: one per stage, and `demo` for all stages in succession."""

import gc

# A command imports a million objects that stay. Looking among them for garbage takes a tenth of its start; `_main.main`
# sets the usual threshold again.
GC_THRESHOLD = gc.get_threshold()
gc.set_threshold(100_000)
