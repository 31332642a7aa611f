"""Reads NIH's images with text from their labels, followed by IU's reports without images: never a pair of the two."""

from maira_jax.studies.readers import iu_xray, nih_cxr14
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Study

NIH_FOLDER, IU_FOLDER = "nih-cxr14-mini", "iu-xray-reports"


@READERS.register("nih_iu")
class NihIuSection(FilesSection):
    """NIH ChestX-ray14 and the reports of the Indiana University collection, of `n` studies half from each.

    `path` is the folder that holds `nih-cxr14-mini` and `iu-xray-reports`.
    """

    def load(self) -> list[Study]:
        half = None if self.n is None else max(1, self.n // 2)
        images = nih_cxr14.read(self.folder / NIH_FOLDER, half)
        return (
            images
            if self.n == 1
            else [*images, *iu_xray.read(self.folder / IU_FOLDER, self.n and self.n - len(images))]
        )
