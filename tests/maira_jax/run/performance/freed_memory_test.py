"""How often threads that allocate and free touch new pages."""

import platform
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

_PROGRAM = """
import resource
from concurrent.futures import ThreadPoolExecutor

from maira_jax.run.performance.freed_memory import keep_freed_memory

if {keeps}:
    keep_freed_memory()


def allocate(_):
    blocks = [bytearray(b"1" * 2**20) for _ in range(4)]
    return len(blocks)


with ThreadPoolExecutor(4) as pool:
    list(pool.map(allocate, range(20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(pool.map(allocate, range(100)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keeps: bool) -> int:
    program = [sys.executable, "-c", _PROGRAM.format(keeps=keeps)]
    return int(subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_used_again():
    assert faults(True) * 10 < faults(False)
