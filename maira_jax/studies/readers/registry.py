"""The readers of studies, by the name that `studies.source` gives, and what all of them have in common.

A reader of one more data set is one file: a `StudiesSection` that declares its fields and loads its studies.

    @READERS.register("my_hospital")
    class MyHospitalSection(FilesSection):
        \"\"\"Studies of my hospital.\"\"\"

        def load(self) -> list[Study]:
            return [Study(...) for row in table.rows(self.folder / "studies.csv", ("id", "text"))]
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from maira_jax.errors import UserError
from maira_jax.run.config import Section, setting
from maira_jax.run.registry import Registry
from maira_jax.studies.study import Study

READERS: Registry[type["StudiesSection"]] = Registry("studies.source")


class StudiesSection(Section, name="studies"):
    """Which studies are read. Each reader declares what else it needs to know."""

    source: str = setting("manifest", "Reader of the studies.", choices=READERS.names)
    n: int | None = setting(None, "At most this many studies, from the first; None: all.", ge=1)

    balanced: int | None = setting(
        None,
        "Of the studies that are read, at most this many for each of MedSAE's eight classes, positive for it and, "
        "where possible, for no other; None: all.",
        ge=1,
    )

    def load(self) -> Sequence[Study]:
        """Reads the studies, all of those that `balanced` chooses from.

        Raises:
          UserError: the data are missing or ill-formed.
        """
        raise NotImplementedError

    def stated(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        """What each sentence of each study states, by study id (see `Study.stated`); empty where nobody knows."""
        return {}


class FilesSection(StudiesSection):
    """Studies that are read from files."""

    path: str = setting("", "The data set's folder, or the manifest.")
    on_error: Literal["refuse", "skip"] = setting(
        "refuse", "What a harvest does with studies that have an image that cannot be read."
    )

    @property
    def folder(self) -> Path:
        """`path`, with the home directory in place of a tilde."""
        return Path(self.path).expanduser()

    def check(self) -> None:
        if not self.path:
            raise UserError(f"studies.path is empty, but studies.source={self.source!r} reads files: give the path")
