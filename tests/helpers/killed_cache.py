"""Writes fifty answers into the cache at a path and kills itself: `python -m tests.helpers.killed_cache PATH`."""

import os
import signal
import sys
from pathlib import Path

from interp.llm.answer_cache import AnswerCache, CachedAnswer

if __name__ == "__main__":
    cache = AnswerCache(Path(sys.argv[1]))
    for i in range(50):
        cache.add(f"key {i}", 0, "m", "detect-1", "x" * 3000, CachedAnswer("{}", 1, 1, 0.5))
    os.kill(os.getpid(), signal.SIGKILL)
