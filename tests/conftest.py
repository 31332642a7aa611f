"""What several tests use, and how many tests were skipped for want of data."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.helpers import readme_run

DATA = "MAIRA_JAX_TEST_DATA"
# Linux allows a process 65,530 maps of memory. Each compiled program has some, and XLA crashes where it gets no more.
_ROOT = Path(__file__).resolve().parents[1]
_MAPS, _MAX_MAPS = Path("/proc/self/maps"), 30_000
# What takes half a minute and more, longest first: begun late, such a file would keep one worker at the end. The last
# ones run the programs that the first one has compiled.
LONGEST = (
    "tests/readme_test.py",
    "tests/maira_jax/model/sharding_test.py",
    "tests/sae/training/pods_test.py",
    "tests/launch/pods_test.py",
    "tests/launch/pods_interp_test.py",
    "tests/maira_jax/phantom/pretraining/stage_test.py",
    "tests/interp/exemplars/index_test.py",
    "tests/launch/demo_test.py",
    "tests/launch/extend_test.py",
    "tests/launch/study_test.py",
)
_WITHOUT_DATA = f"needs the folder of real data that the environment variable {DATA} names"


def pytest_configure() -> None:
    """Has this process read the compilation cache and not write to it, as commands that the tests start do.

    To write a program XLA serialises it, which once in many runs crashed a process with as many threads as this one.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, in which order workers take them (`--no-loadscope-reorder`).

    Raises:
      AssertionError: one of them is not there.
    """
    places = {_ROOT / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets what was compiled after a file of tests, where it has become much."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the README's first command ran, small, and what it printed. Not to be changed."""
    return readme_run.first_run(tmp_path_factory)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real X-rays, reports and the Llama tokenizer file, which are not part of the repository."""
    folder = os.environ.get(DATA)
    if not folder:
        pytest.skip(_WITHOUT_DATA)
    path = Path(folder)
    assert path.is_dir(), f"{DATA} names {folder}, which is not a folder"
    return path


def pytest_terminal_summary(terminalreporter) -> None:
    """Says how many tests did not run because there was no real data."""
    skipped = sum(_WITHOUT_DATA in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"{skipped} tests were skipped: each {_WITHOUT_DATA}")
