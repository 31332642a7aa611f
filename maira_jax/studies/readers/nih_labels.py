"""The labels of NIH ChestX-ray14 as concepts, and the findings text that a template writes from them."""

from collections.abc import Mapping
from pathlib import Path

from maira_jax.errors import UserError

_NOTHING = "No Finding"
_CONCEPTS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "oedema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    _NOTHING: "no finding",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
_BOX_CONCEPTS = _CONCEPTS | {"Infiltrate": "infiltration"}  # the boxes' file has this word of its own
_LUNGS = {
    "consolidation": "consolidation",
    "oedema": "pulmonary edema",
    "atelectasis": "atelectasis",
    "infiltration": "a lung infiltrate",
    "pneumonia": "pneumonia",
    "emphysema": "emphysema",
    "fibrosis": "fibrosis",
    "mass": "a lung mass",
    "nodule": "a lung nodule",
}


def concepts_of(listed: str, image_id: str, path: Path) -> dict[str, bool]:
    """Every concept of the data set, and whether the labels of an image name it.

    Args:
      listed: the labels, separated by "|".
      image_id: the image's name, for the error message.
      path: the table, for the error message.

    Raises:
      UserError: a label is not one of the data set's, or "No Finding" is named with another.
    """
    named = set(listed.split("|"))
    if len(named) > 1 and _NOTHING in named:
        raise UserError(f"{path}: {image_id} has {_NOTHING!r} and other labels ({listed}): remove what is wrong")
    unknown = sorted(named - set(_CONCEPTS))
    if unknown:
        raise UserError(f"{path}: {image_id} has the unknown label {unknown[0]!r}: use the data set's own")
    return {concept: label in named for label, concept in _CONCEPTS.items()}


def concept_of_box(label: str, path: Path) -> str:
    """The concept that a label of the boxes' table `path` means.

    Raises:
      UserError: the label is not one of the data set's.
    """
    if label not in _BOX_CONCEPTS:
        raise UserError(f"{path}: a box has the unknown label {label!r}: use the data set's own")
    return _BOX_CONCEPTS[label]


def write_findings(labels: Mapping[str, bool]) -> str:
    """The findings text for a study's labels, concept -> bool."""
    seen = [text for name, text in _LUNGS.items() if labels[name]]
    out = [f"There is {text}." for text in seen]
    if not seen:
        out.append("The lungs are clear without consolidation or edema.")
    else:
        unseen = [text for name, text in (("consolidation", "consolidation"), ("oedema", "edema")) if not labels[name]]
        out += [f"No {' or '.join(unseen)}."] if unseen else []
    if not labels["pleural effusion"] and not labels["pneumothorax"]:
        out.append("No pleural effusion or pneumothorax.")
    else:
        for name in ("pleural effusion", "pneumothorax"):
            out.append(f"There is a {name}." if labels[name] else f"No {name}.")
    if labels["pleural thickening"]:
        out.append("There is pleural thickening.")
    out.append("The heart is enlarged." if labels["cardiomegaly"] else "Heart size is normal.")
    if labels["hernia"]:
        out.append("There is a hiatal hernia.")
    return " ".join(out)
