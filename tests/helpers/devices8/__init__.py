"""Programs that tests run in a process of their own, on 8 devices of the CPU: python -m tests.helpers.devices8.NAME."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
