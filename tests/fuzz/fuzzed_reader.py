"""What is fuzzed: readers of files that come from elsewhere, each with a sound input."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class FuzzedReader(NamedTuple):
    """A reader of one kind of file.

    Attributes:
      write: writes a sound input into an empty folder.
      read: reads what is in the folder, as the commands do.
      files: glob patterns of the files that are damaged.
      writes: whether `read` may change the folder.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]
    writes: bool = False

    def damaged_files(self, folder: Path) -> list[str]:
        """The files that are damaged, by their paths in the folder, in the order of their names."""
        found = {path for pattern in self.files for path in folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(folder).as_posix() for path in found)
