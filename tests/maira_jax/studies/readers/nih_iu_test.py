"""Images of NIH and reports of IU, one after the other."""

from pathlib import Path

from ml_collections import ConfigDict

from maira_jax.studies.readers import load_studies


def test_nih_and_iu_are_never_one_study(shared_data: Path) -> None:
    section = {"source": "nih_iu", "path": str(shared_data)}
    studies = load_studies(ConfigDict(section))
    assert len(studies) == 910 + 3337
    for study in studies:
        assert (study.frontal is None) == (study.findings_origin == "report")
    some = load_studies(ConfigDict({**section, "n": 5}))
    assert [study.study_id.split("-")[0] for study in some] == ["nih", "nih", "iu", "iu", "iu"]
    for source, folder in (("nih_cxr14", "nih-cxr14-mini"), ("iu_xray", "iu-xray-reports")):
        assert len(load_studies(ConfigDict({"source": source, "path": str(shared_data / folder), "n": 4}))) == 4
