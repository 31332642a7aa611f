"""Images read by processes and threads: equal results, one sentence for what goes wrong, and nothing left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.inputs import image_readers
from maira_jax.inputs.image import to_grey_square
from maira_jax.inputs.image_readers import ImageReaders
from tests.helpers.dicom_file import write_dicom
from tests.helpers.paths import ROOT


@pytest.fixture
def images(tmp_path):
    """A JPEG, an 8-bit and a 16-bit PNG, and DICOM."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 4096, (3, 90, 70)).astype(np.uint16)
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.png")]
    for path, values in zip(paths[:2], grey[:2], strict=True):
        Image.fromarray((values // 16).astype(np.uint8)).save(path)
    Image.fromarray(grey[2]).save(paths[2])
    return [*paths, write_dicom(tmp_path / "d.dcm", grey[2])]


@pytest.fixture(params=[0, 2], ids=["threads", "processes"])
def readers(request):
    readers = ImageReaders(32, request.param)
    yield readers
    readers.close()


def workers(parent: int | None = None) -> list[int]:
    """Processes of this program that a process started and that run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, started_by = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            is_worker = b"image_readers" in (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if is_worker and int(started_by) == (parent or os.getpid()) and state != "Z":
            found.append(int(folder.name))
    return found


def test_processes_and_threads_give_what_is_read_in_place(readers, images):
    array = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)
    futures = [readers.submit(image) for image in (*images, array)]
    for image, future in zip((*images, array), futures, strict=True):
        np.testing.assert_array_equal(future.result(), to_grey_square(image, 32))


def test_an_image_is_read_once(readers, images, monkeypatch):
    assert readers.submit(images[0]) is readers.submit(Path(str(images[0])))
    array = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert readers.submit(array) is readers.submit(array)
    assert readers.submit(array) is not readers.submit(array.copy())


def test_an_image_that_nobody_asked_for_again_is_forgotten(images, monkeypatch):
    monkeypatch.setattr(image_readers, "_KEPT_BYTES", 2 * 32 * 32)
    readers = ImageReaders(32, 0)
    first = readers.submit(images[0])
    readers.submit(images[1])
    assert readers.submit(images[0]) is first
    readers.submit(images[2])
    assert readers.submit(images[0]) is first
    assert readers.submit(images[1]) is not None and readers.submit(images[2]) is not first
    assert readers.submit(images[0]) is not first
    readers.close()


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(readers, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[1].read_bytes()[:200])
    futures = [readers.submit(path) for path in (broken, tmp_path / "none.png", *images)]
    with pytest.raises(UserError, match=r"image .*broken\.png cannot be read .* replace the file"):
        futures[0].result()
    with pytest.raises(UserError, match=r"image .*none\.png does not exist"):
        futures[1].result()
    np.testing.assert_array_equal(futures[4].result(), to_grey_square(images[2], 32))


def test_a_worker_that_ends_is_a_sentence_that_names_the_image(images):
    readers = ImageReaders(32, 1)
    readers.submit(images[0]).result()
    (worker,) = workers()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match=r"ended \(with code -9\) while it read image .*b\.png: free memory"):
        readers.submit(images[1]).result()
    np.testing.assert_array_equal(readers.submit(images[2]).result(), to_grey_square(images[2], 32))
    readers.close()
    assert not workers()


def test_workers_end_when_nobody_uses_the_readers(images):
    readers = ImageReaders(32, 2)
    readers.submit(images[0]).result()
    assert workers()
    del readers
    assert not workers()


CALLER = """
import signal, sys, time
from pathlib import Path
from maira_jax.inputs.image_readers import ImageReaders
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were started to ignore it
readers = ImageReaders(32, 2)
[future.result() for future in map(readers.submit, map(Path, sys.argv[1:]))]
print("read", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_workers_end_with_their_caller(images, how):
    """A script without a guard around its main part; Ctrl-C goes to all processes of its group."""
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, *map(str, images)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert caller.stdout and caller.stdout.readline() == "read\n"
    started = workers(caller.pid)
    assert 1 <= len(started) <= 2
    os.killpg(caller.pid, how)
    _, errors = caller.communicate(timeout=30)
    assert errors.count("Traceback") == (1 if how == signal.SIGINT else 0)
    deadline = time.monotonic() + 30
    while any(map(running, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_needs_no_jax():
    program = "import maira_jax.inputs.image_readers, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
