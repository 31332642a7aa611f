"""Images read and resized ahead of the model, by processes of their own.

A worker is a program that takes one path after the other from its standard input and answers with the resized image.
It is not a `multiprocessing` child: that would run the caller's main module again in every worker, which a notebook or
a script without a guard does not survive, or fork a process in which JAX has threads. A worker imports no JAX, has its
own process group, so that Ctrl-C reaches the caller alone, and ends when its input does, however the caller ended.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from maira_jax.errors import UserError, first_line
from maira_jax.inputs.image import to_grey_square
from maira_jax.studies.study import ImageSource

Label = TypeVar("Label")
Square: TypeAlias = Callable[[ImageSource, int], np.ndarray]
"""Makes an array, uint8 [size, size] but for thumbnails, of an image and a size: a function of a module."""

# Images that are being read, or have been, before those that are needed first are given; at least a group of them.
_IMAGES_AHEAD = 64
# Threads that resize arrays, and read files where there are no worker processes.
_THREADS = 2
# Memory for resized images that may be asked for again: those of a patient's studies are each other's prior images.
_KEPT_BYTES = 2**28

# Memory that an image's buffers have freed stays with the worker: mapping it anew costs a sixth of the time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def default_processes() -> int:
    """As many workers as there are processors, at most 32."""
    return min(os.cpu_count() or 1, 32)


def image_key(image: ImageSource) -> str | int:
    """What two uses of one image have in common, while both exist: the path of a file, the identity of an array."""
    return id(image) if isinstance(image, np.ndarray) else str(image)


class ImageReaders:
    """Reads images in the order in which they are asked for, several at a time.

    Args:
      size: side of the square that images are resized to, in pixels.
      processes: number of worker processes, each started when it is first needed; 0: files are read by threads of this
        process; None: `default_processes`.
      square: what is made of each image. The worker processes import it, so it must be a function of a module.

    Attributes:
      close: ends threads and processes; called, too, when the object is no longer used.
    """

    def __init__(self, size: int, processes: int | None = None, square: Square = to_grey_square):
        self._processes = default_processes() if processes is None else processes
        self._size, self._square = size, square
        self._threads = ThreadPoolExecutor(max(self._processes, _THREADS), "image-reader")
        self._idle: list[_Worker] = []
        self._kept: OrderedDict[str | int, tuple[ImageSource, Future[np.ndarray]]] = OrderedDict()
        self._max_kept = max(_KEPT_BYTES // size**2, 1)
        self.close = weakref.finalize(self, _close, self._threads, self._idle)

    def submit(self, image: ImageSource) -> Future[np.ndarray]:
        """Begins to read an image: its square, uint8 [size, size]. One that was read lately is not read again.

        The future raises UserError for a file that cannot be read, and where a worker ends while it reads.
        """
        key = image_key(image)
        # The image is kept with its future, so that no other array gets its id.
        entry = self._kept.pop(key, None) or (image, self._threads.submit(self._read, image))
        self._kept[key] = entry
        if len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)
        return entry[1]

    def ahead(self, groups: Iterable[tuple[Label, Sequence[ImageSource]]]) -> Iterator[tuple[Label, list[np.ndarray]]]:
        """Yields each group's label with the squares of its images, while those of the next groups are read.

        Raises:
          UserError: an image cannot be read.
        """
        reading: deque[tuple[Label, list[Future[np.ndarray]]]] = deque()
        n_images = 0
        for label, images in groups:
            reading.append((label, [self.submit(image) for image in images]))
            n_images += len(images)
            while reading and n_images > _IMAGES_AHEAD:
                first, squares = reading.popleft()
                n_images -= len(squares)
                yield first, [square.result() for square in squares]
        for label, squares in reading:
            yield label, [square.result() for square in squares]

    def _read(self, image: ImageSource) -> np.ndarray:
        if not self._processes or isinstance(image, np.ndarray):
            return self._square(image, self._size)
        worker = self._idle.pop() if self._idle else _Worker(self._size, self._square)
        try:
            return worker.read(image)
        finally:
            if worker.alive:
                self._idle.append(worker)


def _close(threads: ThreadPoolExecutor, workers: "list[_Worker]") -> None:
    threads.shutdown(cancel_futures=True)
    for worker in workers:
        worker.close()


class _Worker:
    """One worker process, for one caller at a time."""

    def __init__(self, size: int, square: Square):
        imports = f"from {__name__} import serve; from {square.__module__} import {square.__qualname__} as square"
        program = f"import sys; sys.path[:] = {sys.path!r}; {imports}; serve({size}, square)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
            env=os.environ | _KEEP_MEMORY,
        )
        self.alive = True

    def read(self, path: Path) -> np.ndarray:
        """See `ImageReaders.submit`."""
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump(str(path), self._process.stdin)
            self._process.stdin.flush()
            found = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.close()
            raise UserError(
                f"a process ended (with code {self._process.returncode}) while it read image {path}: free memory, set "
                "harvest.readers lower, or leave the study out"
            ) from error
        if isinstance(found, str):
            raise UserError(found)
        return np.asarray(found)

    def close(self) -> None:
        """Ends the process."""
        self.alive = False
        self._process.kill()  # it holds nothing that could be lost
        self._process.communicate()


def serve(size: int, square: Square) -> None:
    """The worker's program: answers each path with its square, or with the sentence that says what is wrong.

    Args:
      size: side of the squares.
      square: what is made of each image.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the caller has gone: end without a word
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.suppress(EOFError):
        os.dup2(2, 1)  # what a library prints must not get between the answers
        while True:
            path = Path(pickle.load(sys.stdin.buffer))
            answer: np.ndarray | str
            try:
                answer = square(path, size)
            except UserError as error:
                answer = str(error)
            except Exception as error:  # a decoder's, of a kind that `read_grey` does not know
                answer = f"image {path} cannot be read ({first_line(error)}): replace the file or leave the study out"
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()
