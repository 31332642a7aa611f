"""Which patients are held out."""

import hashlib


def split_of(patient_id: str, held_out: float, seed: int = 0) -> str:
    """The split of a patient: "train" or "held_out".

    It depends on nothing but the arguments, so a patient's studies are never divided and adding studies moves
    nobody.

    Args:
      patient_id: `Study.patient_id`.
      held_out: share of patients that are held out, 0 to 1.
      seed: another seed is another split.
    """
    digest = hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < held_out * 2**64 else "train"
