"""A few damaged inputs of each kind; `make fuzz` tries many, within limits of time and memory."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maira_jax.errors import UserError
from tests.fuzz.__main__ import trials
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.fuzz.mutations import mutated
from tests.fuzz.process import MAX_BYTES
from tests.fuzz.readers import READERS
from tests.fuzz.trial import Trials

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
# Each template is rendered in a process of its own.
_SLOW = {"chat template", "chat template in JSON"}


@pytest.mark.parametrize("kind", READERS)
def test_damaged_inputs_are_read_or_refused_in_one_sentence(kind, tmp_path):
    tried = Trials(READERS[kind], tmp_path)

    @settings(
        max_examples=2 if kind in _SLOW else 15,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def run(rng):
        tried.run(rng)

    run()


@pytest.mark.parametrize(("kind", "i"), [("answers.sqlite", 1585), ("CheXpert", 130), ("names in parquet", 503)])
def test_what_once_ended_in_an_error_is_refused_in_one_sentence(kind, i, tmp_path):
    assert Trials(READERS[kind], tmp_path).run(random.Random(f"{kind} {i}"))


def test_whatever_a_reader_raises_is_found(tmp_path):
    def read(folder: Path) -> int:
        found = json.loads((folder / "n.json").read_text())
        if not isinstance(found["n"], int):
            raise UserError("" if found["n"] == [] else "n is no number: correct it")
        return found["n"]

    reader = FuzzedReader(lambda folder: (folder / "n.json").write_text('{"n": 1}'), read, ("*",))
    found = set()
    tried = Trials(reader, tmp_path)
    for seed in range(400):
        try:
            found.add("refused" if tried.run(random.Random(seed)) else "accepted")
        except Exception as error:
            found.add(type(error).__name__)
    assert found >= {"refused", "accepted", "KeyError", "JSONDecodeError", "UnicodeDecodeError", "AssertionError"}


def test_damage_is_repeated_by_its_seed_and_reaches_what_is_inside_of_checksums(tmp_path):
    reader = READERS["MIMIC-CXR"]
    reader.write(tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    first, second = ([mutated(path.name, path.read_bytes(), random.Random(i)) for i in range(50)] for _ in range(2))
    assert first == second and len(set(first)) > 40


def _ask_for_much() -> None:
    np.ones(MAX_BYTES // 4)


def _compute_for_ever() -> None:
    while True:
        pass


@pytest.mark.drill
@pytest.mark.parametrize("end", [os.abort, _ask_for_much, _compute_for_ever])
def test_what_ends_a_process_or_takes_too_much_is_found_and_the_next_input_is_tried(end, monkeypatch):
    def read(folder: Path) -> None:
        if (folder / "bytes").read_bytes() != sound:
            end()

    sound = bytes(range(256))
    monkeypatch.setitem(
        READERS, "toy", FuzzedReader(lambda folder: (folder / "bytes").write_bytes(sound), read, ("*",))
    )
    found = list(trials("toy", 0, 2))
    assert [line["input"] for line in found if "error" in line] == [0, 1]
    assert sum(line.get("errors", 0) for line in found) == 2
