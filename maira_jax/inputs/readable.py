"""Images that cannot be read, found before the model sees the first one, all together."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging

from maira_jax.errors import UserError
from maira_jax.inputs.image import to_grey
from maira_jax.inputs.image_readers import ImageReaders
from maira_jax.run import files, processes, storage
from maira_jax.run.progress import progress
from maira_jax.studies.readers import READERS, load_studies
from maira_jax.studies.readers.registry import FilesSection
from maira_jax.studies.study import ImageSource, Study

REPORT = "images.json"
_AT_A_TIME = 1024  # images whose answers wait
_VERSION_DIGITS = 16  # hex digits of a hash that are kept of each image
_NAMED = 5  # images that the refusal names


def load_readable(section: Mapping[str, Any], workdir: Path, readers: int | None) -> Sequence[Study]:
    """The studies of a configuration's `studies` section, all images of which can be read. By all processes together.

    Every image file is decoded once, in worker processes, unless it was at the last call and has not changed since.
    `WORKDIR/images.json` holds "unreadable": the study, the file and the reason of each image that cannot be read.

    Args:
      section: see `load_studies`.
      workdir: the run directory.
      readers: number of worker processes; see `ImageReaders`.

    Raises:
      UserError: the studies cannot be read, or some images cannot and `studies.on_error` does not skip their studies.
    """
    studies, reader = load_studies(section), READERS.get(section["source"])
    if not issubclass(reader, FilesSection):
        return studies
    paths = list(dict.fromkeys(str(image) for study in studies for image in _images(study)))
    if not paths:
        return studies
    report = workdir / REPORT
    storage.fetch(report)
    versions = {path: files.digest(file_version(path))[:_VERSION_DIGITS] for path in paths}
    unseen = processes.first_only(lambda: _KnownImages.read(report).unseen(versions.values()))
    reasons = _unreadable([paths[number] for number in unseen], readers) if unseen else {}
    unreadable = processes.first_only(lambda: _reported(report, studies, versions, reasons))
    skipped = {entry["study_id"] for entry in unreadable}
    if not skipped:
        return studies
    if reader.parse(section).on_error == "refuse":
        named = ", ".join(dict.fromkeys(entry["image"] for entry in unreadable[:_NAMED]))
        more = f" and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        raise UserError(
            f"image files cannot be read: {named}{more}; {report} says why: replace them, or leave their studies out "
            "with --config.studies.on_error=skip"
        )
    logging.warning(
        "studies with an image that cannot be read are left out: %d of %d; %s says why",
        len(skipped),
        len(studies),
        report,
    )
    return [study for study in studies if study.study_id not in skipped]


@dataclasses.dataclass(frozen=True)
class _KnownImages:
    """What a report says of images: the versions of readable ones, and why the others are not, by version."""

    readable: frozenset[str]
    reasons: Mapping[str, str]

    @classmethod
    def read(cls, report: Path) -> Self:
        found = files.read_object(report) if report.is_file() else {}
        reasons = {entry["version"]: entry["reason"] for entry in found.get("unreadable", ()) if "version" in entry}
        return cls(frozenset(found.get("readable", ())), reasons)

    def unseen(self, versions: Iterable[str]) -> list[int]:
        """Numbers of the images that were not read, or not as they are now."""
        return [
            number
            for number, version in enumerate(versions)
            if version not in self.readable and version not in self.reasons
        ]


def _reported(
    report: Path, studies: Sequence[Study], versions: Mapping[str, str], reasons: Mapping[str, str]
) -> list[dict[str, str]]:
    """Writes the report of all images, and returns its entries of those that cannot be read.

    Args:
      report: the file.
      studies: the studies.
      versions: of each image.
      reasons: why those that were read now cannot be.
    """
    known = _KnownImages.read(report).reasons
    why = {path: known[version] for path, version in versions.items() if version in known} | dict(reasons)
    unreadable = [
        {"study_id": study.study_id, "image": str(image), "reason": why[str(image)], "version": versions[str(image)]}
        for study in studies
        for image in _images(study)
        if str(image) in why
    ]
    readable = [version for path, version in versions.items() if path not in why]
    files.write_json(report, {"images": len(versions), "unreadable": unreadable, "readable": readable})
    return unreadable


def refuse_unreadable(image: ImageSource, size: int) -> np.ndarray:
    """What a worker process does with an image; its answer, uint8 [1, 1], says nothing.

    Raises:
      UserError: the image cannot be read.
    """
    to_grey(image)
    return np.zeros((1, 1), np.uint8)


def _images(study: Study) -> list[Path]:
    return [image for image in (study.frontal, study.lateral, study.prior_frontal) if isinstance(image, Path)]


def file_version(path: str) -> list[Any]:
    """What changes with a file: its path, its size and when it was written; the path alone of one that is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return [path]
    return [path, found.st_size, found.st_mtime_ns]


def _unreadable(paths: Sequence[str], readers: int | None) -> dict[str, str]:
    """The reason for each file that cannot be read; every process looks at a share of them."""
    found: dict[str, str] = {}
    mine, images = paths[processes.index() :: processes.count()], ImageReaders(1, readers, refuse_unreadable)
    try:
        with progress(total=len(mine), unit="image", desc="check images", shared=True) as bar:
            for start in range(0, len(mine), _AT_A_TIME):
                asked = [(path, images.submit(Path(path))) for path in mine[start : start + _AT_A_TIME]]
                for path, answer in asked:
                    error = answer.exception()
                    if isinstance(error, UserError):
                        found[path] = str(error)
                    elif error is not None:
                        raise error
                    bar.update()
    finally:
        images.close()
    return {path: reason for each in processes.gather(found) for path, reason in each.items()}
