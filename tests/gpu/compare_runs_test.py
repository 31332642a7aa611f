"""The comparison of two runs, on small ones that differ in known ways."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.run import files
from tests.gpu.compare_runs import compared, main
from tests.helpers.sae import activations, make_store


def write_run(run, text: str, fvu: float, f1: float, x: np.ndarray):
    for folder in ("reports", "sae", "interp"):
        (run / folder).mkdir(parents=True)
    rows = [{"study_id": "a", "findings": text}, {"study_id": "b", "findings": "Clear."}]
    (run / "reports/generations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files.write_json(run / "sae/metrics.json", {"fvu": fvu, "loss": {"ce": 2}})
    pq.write_table(pa.table({"concept": ["edema", "none"], "f1": [f1, None]}), run / "interp/concepts.parquet")
    make_store(run, x)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, x = tmp_path_factory.mktemp("runs"), activations(300, 8)
    far = x.copy()
    far[7] *= 1.01
    return (
        write_run(folder / "one", "Edema.", 0.25, 0.5, x),
        write_run(folder / "near", "Edema.", 0.5, 0.75, x * np.float32(1 + 1e-5)),
        write_run(folder / "far", "No edema.", 0.25, 0.5, far),
    )


def test_runs_with_the_same_weights_agree_whatever_was_trained(runs, capsys):
    one, near, _ = runs
    found = compared(one, near)
    assert found["texts"] == {"reports": {"texts": 2, "equal": 1.0}} and 5e-6 < found["activations"] < 2e-5
    assert found["numbers"] == {
        "interp.f1.edema": (0.5, 0.75, 0.25), "sae.fvu": (0.25, 0.5, 0.25), "sae.loss.ce": (2.0, 2.0, 0.0)
    }  # fmt: skip
    assert main(one, near) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["largest_f1_difference"] == 0.25


def test_other_texts_and_activations_are_seen(runs):
    one, _, far = runs
    found = compared(one, far)
    assert found["texts"]["reports"]["equal"] == 0.5 and abs(found["activations"] - 0.01 / 1.01) < 1e-4
    assert main(one, far) == 1
