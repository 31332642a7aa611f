"""Explains and scores features through a server: `python -m tests.helpers.judged_study URL WORKDIR N CONCURRENCY`.

Writes WORKDIR/scores.json.
"""

import dataclasses
import json
import sys
from pathlib import Path

from tests.helpers.judge import study

if __name__ == "__main__":
    url, workdir, n, concurrency = sys.argv[1:]
    scores = study(url, workdir, int(n), concurrency=int(concurrency))
    Path(workdir, "scores.json").write_text(json.dumps([dataclasses.asdict(score) for score in scores]))
