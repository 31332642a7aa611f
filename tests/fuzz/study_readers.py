"""Readers of studies and of their images."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from maira_jax.inputs.image import to_grey_square, width_height
from maira_jax.studies.concepts import concept_names
from maira_jax.studies.readers import chexpert, iu_xray, load_studies, nih_release
from maira_jax.studies.study import Study
from tests.fuzz.fuzzed_reader import FuzzedReader
from tests.helpers.dicom_file import lut, write_dicom

_LABELS = list(chexpert.CONCEPTS)
_SAMPLES = Path(pydicom.data.__file__).parent / "test_files"


def _grey(side: int = 24, levels: int = 200) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, levels, (side, side + 4))
    return values.astype(np.uint8 if levels <= 256 else np.uint16)


def _image(name: str, image: Image.Image, **options: object) -> FuzzedReader:
    return FuzzedReader(
        lambda folder: image.save(folder / name, **options), lambda folder: _read_image(folder / name), (name,)
    )


def _read_image(path: Path) -> object:
    return width_height(path), to_grey_square(path, 56).shape


def _dicom(**elements: object) -> FuzzedReader:
    def write(folder: Path) -> None:
        write_dicom(folder / "image.dcm", _grey(levels=4000).astype(np.int16), **elements)

    return FuzzedReader(write, lambda folder: _read_image(folder / "image.dcm"), ("image.dcm",))


def _compressed_dicom(sample: str) -> FuzzedReader:
    content = (_SAMPLES / sample).read_bytes()
    return FuzzedReader(
        lambda folder: (folder / "image.dcm").write_bytes(content),  # type: ignore[arg-type, return-value]
        lambda folder: _read_image(folder / "image.dcm"),
        ("image.dcm",),
    )


def _studies(source: str, **fields: object):
    def read(folder: Path) -> object:
        path = folder / "studies.jsonl" if source == "manifest" else folder
        studies = load_studies({"source": source, "path": str(path)} | fields)
        return [_used(study) for study in studies]

    return read


def _used(study: Study) -> object:
    """What every stage takes of a study, but for its images."""
    json.dumps({"id": study.study_id, "patient": study.patient_id, "labels": study.labels}).encode()
    return [concept_names(finding) for finding in study.truth or ()], study.boxes


def _place(folder: Path, *images: str) -> None:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"not read here")


def _write_manifest(folder: Path) -> None:
    _place(folder, "a.png", "b.png")
    rows = [
        {"study_id": "s1", "patient_id": "p1", "frontal": "a.png", "indication": "Cough.", "findings": "Clear.",
         "labels": {"pneumothorax": False}, "truth": [{"name": "pneumothorax", "status": "absent", "side": "left"}]},
        {"study_id": "s2", "patient_id": "p1", "frontal": "b.png", "prior_frontal": "a.png",
         "boxes": [["pneumonia", 0.1, 0.2, 0.3, 0.4]],
         "grounded_findings": [{"text": "Pneumonia.", "boxes": [["pneumonia", 0.1, 0.2, 0.3, 0.4]]}]},
    ]  # fmt: skip
    (folder / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _table(header: list[str], rows: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    return out.getvalue()


def _write_mimic(folder: Path) -> None:
    images = [["d1", "10000001", "50000001", "PA", "21800506", "213014.531"],
              ["d2", "10000001", "50000002", "AP", "21800626", "93000.0"]]  # fmt: skip
    tables = {
        "metadata": _table(["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"], images),
        "split": _table(["study_id", "split"], [["50000001", "train"], ["50000002", "test"]]),
        "chexpert": _table(["study_id", *_LABELS], [["50000001", *["1.0", "", "-1.0"], *[""] * 11]]),
    }
    for name, text in tables.items():
        (folder / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    for dicom, subject, study, *_ in images:
        _place(folder, f"files/p10/p{subject}/s{study}/{dicom}.jpg")
        (folder / f"files/p10/p{subject}/s{study}.txt").write_text("INDICATION: Cough.\n\nFINDINGS: Clear lungs.\n")


def _write_chexpert(folder: Path) -> None:
    for patient, split in enumerate(chexpert.SPLITS, start=1):
        name = f"{split}/patient{patient:05d}/study1/view1_frontal.jpg"
        row = [f"CheXpert-v1.0/{name}", "F", "68", "Frontal", "AP", "1.0", "", "-1.0", *["0.0"] * 11]
        (folder / f"{split}.csv").write_text(
            _table(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *_LABELS], [row])
        )
        _place(folder, name)


def _write_nih_release(folder: Path) -> None:
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "View Position"]
    rows = [[f"00000007_00{i}.png", labels, str(i), "7", "58", "PA"] for i, labels in enumerate(("Mass", "No Finding"))]
    (folder / nih_release.TABLES[0]).write_text(_table(header, rows))
    (folder / nih_release.BOXES).write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000007_000.png,Mass,256,512,128.0,64.0,,,\n"
    )
    (folder / "train_val_list.txt").write_text("00000007_000.png\n00000007_001.png\n")
    _place(folder, *(f"images_001/images/{row[0]}" for row in rows))


def _write_nih(folder: Path) -> None:
    header = ["image_id", "patient_id", "view", "labels", "prior_image_id", "boxes_xywh_fraction"]
    rows = [
        ["a", "1", "PA", "Mass|Nodule", "", '[["Mass", 0.1, 0.2, 0.3, 0.4]]'],
        ["b", "1", "AP", "No Finding", "a", ""],
    ]
    (folder / "studies.csv").write_text(_table(header, rows))
    _place(folder, "images/a.jpg", "images/b.jpg")


def _write_iu(folder: Path) -> None:
    header = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    rows = [["1", "normal", "normal", "Xray Chest PA", "Cough", "None.", "Clear lungs.", "Normal"]]
    (folder / iu_xray.FILE).write_text(_table(header, rows))


_TIFF_TAGS = {"compression": "tiff_lzw", "dpi": (300, 300)}

IMAGE_READERS = {
    "PNG": _image("image.png", Image.fromarray(_grey())),
    "PNG, 16 bits": _image("image.png", Image.fromarray(_grey(levels=60000))),
    "PNG, palette": _image("image.png", Image.fromarray(_grey()).convert("P")),
    "JPEG": _image("image.jpg", Image.fromarray(_grey())),
    "JPEG, progressive colour": _image("image.jpg", Image.fromarray(_grey()).convert("RGB"), progressive=True),
    "TIFF": _image("image.tiff", Image.fromarray(_grey(levels=60000))),
    "TIFF, LZW": _image("image.tiff", Image.fromarray(_grey()), **_TIFF_TAGS),
    "TIFF, JPEG inside": _image("image.tiff", Image.fromarray(_grey()), compression="jpeg"),
    "TIFF, deflate": _image("image.tiff", Image.fromarray(_grey()).convert("RGB"), compression="tiff_adobe_deflate"),
    "DICOM": _dicom(WindowCenter=[2000, 1], WindowWidth=[900, 2], RescaleSlope="1.5", RescaleIntercept="-3"),
    "DICOM, look-up tables": _dicom(
        bits=12, ModalityLUTSequence=lut(list(range(0, 8192, 2)), 0, 16), VOILUTSequence=lut(list(range(4096)), 0, 12)
    ),
    "DICOM, RLE": _compressed_dicom("MR_small_RLE.dcm"),
    "DICOM, JPEG 2000": _compressed_dicom("MR_small_jp2klossless.dcm"),
    "DICOM, JPEG-LS": _compressed_dicom("MR_small_jpeg_ls_lossless.dcm"),
    "DICOM, JPEG": _compressed_dicom("JPGExtended.dcm"),
    "DICOM, deflated": _compressed_dicom("image_dfl.dcm"),
}
STUDY_READERS = {
    "studies.jsonl": FuzzedReader(_write_manifest, _studies("manifest"), ("studies.jsonl",)),
    "MIMIC-CXR": FuzzedReader(_write_mimic, _studies("mimic_cxr", split="train"), ("*.csv.gz", "files/p10/*/*.txt")),
    "CheXpert": FuzzedReader(_write_chexpert, _studies("chexpert"), ("*.csv",)),
    "NIH ChestX-ray14": FuzzedReader(_write_nih_release, _studies("nih_cxr14", split="train_val"), ("*.csv", "*.txt")),
    "NIH, boxes in fractions": FuzzedReader(_write_nih, _studies("nih_cxr14"), ("studies.csv",)),
    "Indiana University": FuzzedReader(_write_iu, _studies("iu_xray"), (iu_xray.FILE,)),
}
