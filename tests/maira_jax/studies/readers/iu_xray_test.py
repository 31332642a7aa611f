"""The reader of the Indiana University reports, on a small table and on the real one."""

from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.readers import iu_xray

_HEADER = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"


def test_reads_rows_with_findings(tmp_path: Path) -> None:
    (tmp_path / iu_xray.FILE).write_text(
        _HEADER
        + '7,x,"Pleural Effusion;Pulmonary Edema",PA and lateral XXXX,Cough.,None.,"Small  effusion, XXXX.",y\n'
        + "8,normal,normal,PA,,,,z\n"
        + "9,No Indexing,No Indexing,PA,,,Fine.,z\n"
        + "10,normal,normal,PA,,,Clear.,z\n"
    )
    first, unindexed, normal = iu_xray.read(tmp_path)
    assert (first.study_id, first.patient_id, first.frontal) == ("iu-7", "iu-7", None)
    assert (first.technique, first.indication, first.comparison) == ("PA and lateral XXXX", "Cough.", "None.")
    assert first.findings == "Small effusion, XXXX."
    assert {name for name, value in first.labels.items() if value} == {"oedema", "pleural effusion"}
    assert first.labels["pneumothorax"] is False
    assert unindexed.labels == {} and unindexed.indication is None
    assert normal.labels["no finding"] is True
    assert [study.study_id for study in iu_xray.read(tmp_path, n=1)] == ["iu-7"]


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        iu_xray.read(tmp_path)
    (tmp_path / iu_xray.FILE).write_text("uid,findings\n1,x\n")
    with pytest.raises(UserError, match="no column 'Problems'"):
        iu_xray.read(tmp_path)
    (tmp_path / iu_xray.FILE).write_text(_HEADER + "1,x\n")
    with pytest.raises(UserError, match="line 2: fewer fields"):
        iu_xray.read(tmp_path)
    (tmp_path / iu_xray.FILE).write_text(_HEADER)
    with pytest.raises(UserError, match="no report with findings"):
        iu_xray.read(tmp_path)


def test_reads_the_real_reports(shared_data: Path) -> None:
    studies = iu_xray.read(shared_data / "iu-xray-reports")
    assert len(studies) == 3337
    assert len({study.study_id for study in studies}) == 3337
    assert all(study.findings and study.frontal is None for study in studies)
    assert any("XXXX" in (study.findings or "") for study in studies)
    share = {
        name: sum(study.labels.get(name, False) for study in studies)
        for name in ("cardiomegaly", "pneumothorax", "oedema")
    }
    assert share["cardiomegaly"] > 250 and share["pneumothorax"] > 10 and share["oedema"] > 20
