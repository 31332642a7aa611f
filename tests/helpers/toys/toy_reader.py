"""A reader of studies: `reports.tsv` in a folder, and an image per study next to it."""

import json

from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Study


@READERS.register("tab_separated")
class TabSeparatedSection(FilesSection):
    """Studies of a table with the columns id, patient, findings and labels; the image is `ID.png`."""

    def load(self) -> list[Study]:
        rows = [line.split("\t") for line in (self.folder / "reports.tsv").read_text().splitlines()]
        return [
            Study(study, patient, frontal=self.folder / f"{study}.png", findings=findings, labels=json.loads(labels))
            for study, patient, findings, labels in rows[: self.n]
        ]
