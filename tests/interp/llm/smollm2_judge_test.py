"""A small language model as the judge of a whole run: no form at all, refusals, and answers held to a schema.

`python -m pytest -s -m drill tests/interp/llm/smollm2_judge_test.py` prints how many requests it answered. What it
says of features is worthless; that the run ends with every request answered or counted as failed is not, nor that it is
refused where no answer can be used.
"""

import contextlib
import importlib.util
import sqlite3
import subprocess
import sys

import pytest

from interp import stage
from maira_jax.errors import UserError
from tests.helpers import interp_run, smollm2
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.drill, smollm2.needed]

FEATURES, ATTEMPTS = (0, 5), 2


@contextlib.contextmanager
def language_server(*flags):
    """The address of SmolLM2 for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.helpers.language_server", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def counted(workdir):
    """Requests with an answer in the cache, and the answers there are to each."""
    with contextlib.closing(sqlite3.connect(workdir / "judge" / "answers.sqlite")) as cache:
        return [n for (n,) in cache.execute("SELECT COUNT(*) FROM answers GROUP BY key")]


@pytest.mark.parametrize("flags", [(), ("--schemas",)], ids=["free", "schemas"])
def test_a_run_ends_whatever_the_judge_answers(tmp_path, capfd, flags):
    if flags and importlib.util.find_spec("lmformatenforcer") is None:
        pytest.skip("lm-format-enforcer is not installed")
    workdir = interp_run.make_workdir(tmp_path)
    fewer = {"n_explain": 10, "n_score": 10, "min_contexts": 5, "n_control": 1, "scorers": ("detection",)}
    config = interp_run.config(judge="llm", features=FEATURES, **fewer)
    config.judge.parameters.max_tokens = 160
    with language_server(*flags) as url:
        config.judge.update(
            {
                "base_url": url,
                "model": "SmolLM2-135M-Instruct",
                "concurrency": 2,
                "attempts": ATTEMPTS,
                "timeout": 600.0,
            }
        )
        with contextlib.nullcontext() if flags else pytest.raises(UserError, match="had a usable answer, most often"):
            stage.run(config, workdir)
    answers = counted(workdir)
    lines = capfd.readouterr().err.splitlines()
    failed = sum(int(line.split()[1]) for line in lines if "have no usable answer" in line) if flags else len(answers)
    with capfd.disabled():
        retried = sum(n > 1 for n in answers)
        print(f"\n{flags}: {len(answers)} requests, {sum(answers)} answers, {retried} asked again, {failed} failed")
    assert answers and all(n <= ATTEMPTS for n in answers)
    assert bool(flags) == (failed < len(answers))
