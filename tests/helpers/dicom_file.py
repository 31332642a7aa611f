"""DICOM files of made images, with a patient whose name must appear nowhere."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

PATIENT = "Secret^Patient"


def write_dicom(path: Path, stored: np.ndarray, bits: int = 12, big_endian: bool = False, **elements: object) -> Path:
    """Writes stored values, int16 or uint16 [height, width], with other elements by their keywords."""
    order = ">" if big_endian else "<"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRBigEndian if big_endian else ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, PATIENT, "19010203"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset["PixelData"] = pydicom.DataElement(
        "PixelData", "OW", stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    )
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=not big_endian, force_encoding=True)
    return path


def lut(values: list[int], first: int, bits: int, order: str = "") -> list[Dataset]:
    """The sequence of one look-up table; as numbers, or as words in the byte order "<" or ">"."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values) % 2**16, first, bits])
    if order:
        item.add_new("LUTData", "OW", np.asarray(values, f"{order}u2").tobytes())
    else:
        item.add_new("LUTData", "US", values)
    return [item]
