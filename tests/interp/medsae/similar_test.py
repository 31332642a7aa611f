"""Similar studies, against the definition on dense arrays, and the stage on planted features."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp.exemplars.study_peaks import StudyPeaks
from interp.medsae import similar, similar_stage
from interp.medsae.similar import StudyCodes, nearest, shared_features
from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stages.stage import MANIFEST
from tests.helpers.interp_run import config, make_workdir

N, F = 60, 700


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    """Activations, of which the last study has none, and two studies have the same. [N, F]"""
    rng = np.random.default_rng(0)
    values = (rng.exponential(size=(N, F)) * (rng.random((N, F)) < 0.05)).astype(np.float32)
    values[-1], values[30] = 0, values[20]
    return values


@pytest.fixture(scope="module")
def codes(dense, tmp_path_factory) -> StudyCodes:
    """Codes of studies of 20 patients, from two files, written and read."""
    folder = tmp_path_factory.mktemp("codes")
    for name, first, stop in (("a", 0, 25), ("b", 25, N)):
        np.save(folder / f"{name}.npy", dense[first:stop])
    studies = pa.table(
        {
            "study_id": [f"s{i}" for i in range(N)],
            "patient_id": [f"p{i // 3}" for i in range(N)],
            "split": ["held_out" if i % 2 else "train" for i in range(N)],
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar, "_STUDIES", 10)
        StudyCodes.of(studies, StudyPeaks((N, F), [(folder / "a.npy", 0), (folder / "b.npy", 25)])).write(folder)
    return StudyCodes.read(folder)


def test_codes_are_the_activations(codes, dense):
    np.testing.assert_array_equal(codes.code.toarray(), dense)
    assert codes.code.nnz == (dense > 0).sum() and codes.code.dtype == np.float32
    np.testing.assert_allclose(codes.norm, np.linalg.norm(dense.astype(np.float64), axis=1), rtol=1e-6)
    assert codes.row("s7") == 7 and codes.patient_id[7] == "p2" and codes.split[7] == "held_out"
    with pytest.raises(UserError, match="study s99 has no tokens of label.sections"):
        codes.row("s99")


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("same_patient", [False, True])
@pytest.mark.parametrize("n", [5, 1000])
def test_nearest_as_defined(codes, dense, split, same_patient, n):
    wide = dense.astype(np.float64)
    for row in (0, 4, 20, 57):
        pairs = []
        for other in range(N):
            allowed = other != row and dense[other].any() and split in (None, codes.split[other])
            if allowed and (same_patient or codes.patient_id[other] != codes.patient_id[row]):
                cosine = wide[row] @ wide[other] / np.sqrt(wide[row] @ wide[row]) / np.sqrt(wide[other] @ wide[other])
                pairs.append((-cosine, other))
        wanted = sorted(pairs)[:n]
        rows, similarity = nearest(codes, row, n, split=split, same_patient=same_patient)
        assert rows.tolist() == [other for _, other in wanted]
        np.testing.assert_allclose(similarity, [-cosine for cosine, _ in wanted], atol=1e-6)


def test_equal_codes_are_near_and_none_is_near_to_an_empty_one(codes):
    rows, similarity = nearest(codes, 20, 1)
    assert rows == [30] and similarity[0] == pytest.approx(1)
    other = nearest(codes, 0, N)[0].tolist()
    assert other.index(30) == other.index(20) + 1  # of equals the earlier
    with pytest.raises(UserError, match="study s59 has no active feature"):
        nearest(codes, N - 1, 3)


def test_shared_features_add_up_to_the_similarity(codes, dense):
    rows, similarity = nearest(codes, 3, 4)
    for row, cosine in zip(rows, similarity, strict=True):
        features, share = shared_features(codes, 3, int(row))
        assert set(features) == set(np.flatnonzero(dense[3] * dense[row]))
        assert share.sum() == pytest.approx(cosine, rel=1e-5) and (np.diff(share) <= 0).all() and (share > 0).all()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("similar"), 40)


def _config(study: str, **fields):
    cfg = config()
    cfg.label.sections = ("findings",)
    cfg.similar.update({"study_id": study, "n": 3} | fields)
    return cfg


def test_the_table_names_studies_and_shared_features(run_dir, capsys):
    ids = [f"phantom-0-{i:06d}" for i in range(40)]
    counts = similar_stage.run(_config(ids[2]), run_dir)
    assert counts["studies"] == 40
    lines = capsys.readouterr().out.splitlines()
    codes = StudyCodes.read(run_dir / "similar")
    rows, similarity = nearest(codes, 2, 3)
    assert lines[0].startswith(f"{ids[2]} (train): ")
    assert lines[1].startswith("Studies of other patients by the cosine of their codes with its own")
    found = [line.split()[1:3] for line in lines[2:] if not line.startswith("      ")]
    assert found == [[f"{cosine:.3f}", ids[row]] for row, cosine in zip(rows, similarity, strict=True)]
    features, share = shared_features(codes, 2, int(rows[0]))
    assert lines[3] == f"      {share[0]:.3f}    feature {features[0]}"

    # Names of the same autoencoder are shown, those of another are not; the codes are not computed again.
    (run_dir / "interp").mkdir()
    pq.write_table(
        pa.table({"feature": [int(features[0]), 99], "name": ["effusion", None]}), run_dir / "interp/features.parquet"
    )
    inputs = files.read_object(run_dir / "similar" / MANIFEST)["inputs"]
    written = (run_dir / "similar" / similar.FILE).stat().st_mtime_ns
    for own, named in ((inputs, True), (inputs | {"sae": "another"}, False)):
        (run_dir / "interp" / MANIFEST).write_text(json.dumps({"inputs": own | {"model": "m"}}))
        assert similar_stage.run(_config(ids[2], split="held_out"), run_dir) == counts
        text = capsys.readouterr().out
        assert text.count("(held_out)") == 3 and (f"feature {features[0]} effusion\n" in text) == named
    assert (run_dir / "similar" / similar.FILE).stat().st_mtime_ns == written


def test_wrong_settings_are_refused(run_dir, tmp_path):
    with pytest.raises(UserError, match=r"similar.study_id is empty: name a study with --study_id=ID"):
        similar_stage.run(_config(""), run_dir)
    with pytest.raises(
        UserError, match="study nobody is not in .*activations: name one that its studies.parquet lists"
    ):
        similar_stage.run(_config("nobody"), run_dir)
    with pytest.raises(UserError, match="similar.split is 'test': choose from train, held_out"):
        similar_stage.run(_config("s", split="test"), run_dir)
