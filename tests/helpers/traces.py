"""What a trace of `maira_jax.run.performance.profile` holds."""

import gzip
import json
from collections import Counter
from pathlib import Path


def names_in(directory: Path) -> Counter[str]:
    """How often each name occurs in the only trace of a folder, which TensorBoard's profiler can open too."""
    assert len(list(directory.rglob("*.xplane.pb"))) == 1
    (events,) = directory.rglob("*.trace.json.gz")
    return Counter(event["name"] for event in json.loads(gzip.decompress(events.read_bytes()))["traceEvents"] if event)
