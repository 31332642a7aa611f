"""Images that cannot be read, found before the model sees the first one, all together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
    digest = processes.first_only(lambda: files.digest([file_version(path) for path in paths]))
    known = processes.first_only(lambda: files.read_object(report) if report.is_file() else {})
    if known.get("digest") == digest:
        unreadable = known["unreadable"]
    else:
        reasons = _unreadable(paths, readers)
        of_study = ((study.study_id, str(image)) for study in studies for image in _images(study))
        unreadable = [
            {"study_id": name, "image": image, "reason": reasons[image]} for name, image in of_study if image in reasons
        ]
        if processes.is_first():
            files.write_json(report, {"digest": digest, "images": len(paths), "unreadable": unreadable})
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
    return [study for study in studies if study.study_id not in skipped]


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
