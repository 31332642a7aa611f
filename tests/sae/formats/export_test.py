"""The export stage."""

import shutil

import pytest

from configs import phantom
from maira_jax.errors import UserError
from sae import formats
from sae.formats import export
from sae.saved import load_sae
from tests.helpers.formats import check_same, finished_sae


def test_the_stage(tmp_path, sae):
    for folder in ("sae", "sae-x2"):
        finished_sae(tmp_path, folder, sae)
    config = phantom.get_config()
    config.sae.companions = {"x2": {"expansion": 2}}
    counts = export.run(config, tmp_path)
    assert (
        {path.removeprefix("x2/") for path in counts if path.startswith("x2/")}
        == {path for path in counts if not path.startswith("x2/")}
        == {
            "dictionary_learning/README.md",
            "dictionary_learning/ae.pt",
            "dictionary_learning/config.json",
            "saelens/README.md",
            "saelens/cfg.json",
            "saelens/sae_weights.safetensors",
            "safetensors/README.md",
            "safetensors/sae.safetensors",
        }
    )
    stored = load_sae(tmp_path / "sae")
    check_same(stored, sae)
    for name in formats.writers():
        check_same(formats.load(tmp_path / "export" / name), stored)
    # The same autoencoder gives the same files, whatever the process.
    shutil.move(tmp_path / "export", tmp_path / "moved")
    assert export.run(config, tmp_path) == counts


@pytest.mark.parametrize(
    ("formats", "sentence"),
    [
        (("onnx",), "export.to is 'onnx': choose from dictionary_learning, saelens, safetensors"),
        (("sparsify",), "export.to is 'sparsify': choose from dictionary_learning, saelens, safetensors"),
        ((), "export.to is empty: choose from dictionary_learning, saelens, safetensors"),
    ],
)
def test_formats_that_cannot_be_written_are_refused(formats, sentence):
    with pytest.raises(UserError) as error:
        export.ExportSection.of({"export": {"to": formats}})
    assert str(error.value) == sentence
