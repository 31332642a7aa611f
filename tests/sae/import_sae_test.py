"""An imported autoencoder lies in the run as a trained one, measured in the same way, or is refused."""

import json
import resource
import shutil
import time

import numpy as np
import pytest
import torch

from maira_jax.errors import UserError
from maira_jax.run import files
from sae import formats, import_sae
from sae.formats import export
from sae.saved import load_sae, save_sae
from sae.training import stage
from tests.helpers import peers
from tests.helpers.commands import launch
from tests.helpers.formats import check_same
from tests.helpers.sae import activations, make_store, random_sae, train_config

D = 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with activations, an autoencoder that was trained on them, and its exports."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    make_store(workdir, activations(3000, D))
    config = train_config(steps=20, decay_start=15)
    stage.run(config, workdir)
    export.run(config, workdir)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A run with the same activations and no autoencoder."""
    shutil.copytree(trained / "activations", tmp_path / "run" / "activations")
    return tmp_path / "run"


def config_of(path, **fields):
    config = train_config()
    config.import_sae.update({"sae": str(path)} | fields)
    return config


@pytest.mark.parametrize("form", ["dictionary_learning", "saelens", "safetensors"])
def test_an_export_comes_back_as_it_was_trained(trained, run, form):
    counts = import_sae.run(config_of(trained / "export" / form), run)
    ours, again = (load_sae(folder / "sae") for folder in (trained, run))
    check_same(again, ours)
    assert again.meta["normalization"] == ours.meta["normalization"] != 1
    assert again.meta["source"] == ours.meta["source"]
    for name in ("metrics.json", "density.npy"):
        assert (run / "sae" / name).read_bytes() == (trained / "sae" / name).read_bytes()
    of_training = files.read_json(trained / "sae" / "manifest.json")["counts"]
    assert counts == {name: value for name, value in of_training.items() if name not in ("steps", "tokens")}
    export.run(config_of(""), run)  # which reads what a training leaves
    assert formats.load(run / "export" / "safetensors").k == ours.k


def test_imported_again_it_is_finished_and_another_one_is_refused(trained, run, capsys):
    config = config_of(trained / "export" / "saelens")
    before = import_sae.run(config, run), (run / "sae" / "sae.json").read_bytes()
    assert (import_sae.run(config, run), (run / "sae" / "sae.json").read_bytes()) == before
    assert "already finished" in capsys.readouterr().err
    config.import_sae.l0 = 2
    with pytest.raises(UserError, match=r"sae holds a result of another configuration.*import_sae\.l0"):
        import_sae.run(config, run)


def test_a_trained_autoencoder_is_not_overwritten(trained):
    before = (trained / "sae" / "weights.safetensors").read_bytes()
    words = r"sae holds a result of another.*autoencoder \(now 'imported', there None\).*delete that folder"
    with pytest.raises(UserError, match=words):
        import_sae.run(config_of(trained / "export" / "saelens"), trained)
    assert (trained / "sae" / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("killed_in", ["sae.import_sae.save_measured", "sae.saved.files.sha256"])
def test_a_killed_import_ends_as_one_that_was_not(trained, run, monkeypatch, killed_in):
    """Killed before anything is written, and between the weights and their header."""
    config = config_of(trained / "export" / "saelens")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(killed_in, killed)
        import_sae.run(config, run)
    assert not (run / "sae" / "manifest.json").exists()
    import_sae.run(config, run)
    for name in ("weights.safetensors", "metrics.json"):
        assert (run / "sae" / name).read_bytes() == (trained / "sae" / name).read_bytes()


def test_the_threshold_is_set_for_an_l0_that_is_asked_for(trained, run):
    import_sae.run(config_of(trained / "export" / "dictionary_learning", l0=2), run)
    metrics = files.read_json(run / "sae" / "metrics.json")
    assert metrics["l0"] == pytest.approx(2, abs=0.01)
    assert load_sae(run / "sae").k == 4  # what it was trained for
    assert load_sae(run / "sae").threshold > load_sae(trained / "sae").threshold


def test_thresholds_of_each_feature_are_kept(run, tmp_path):
    thresholds = np.linspace(0.1, 1.5, 2 * D).astype(np.float32)
    sae = random_sae(activations(50, D), (2 * D,), 3, thresholds)
    formats.writers()["safetensors"].save(tmp_path / "file", sae, True)
    assert import_sae.run(config_of(tmp_path / "file"), run)["threshold"] == "one per feature"
    check_same(load_sae(run / "sae"), sae)


def test_the_k_largest_of_each_token_need_no_threshold(run, tmp_path):
    sae = random_sae(activations(50, D), (2 * D,), 3, -1.0, per_token=True)
    formats.writers()["saelens"].save(tmp_path / "file", sae, True)
    with pytest.raises(UserError, match=r"keeps the 3 largest features of each token: set import_sae\.l0 to 0"):
        import_sae.run(config_of(tmp_path / "file", l0=2), run)
    assert not (run / "sae").exists()
    assert import_sae.run(config_of(tmp_path / "file"), run)["l0"] <= 3


def test_another_width_is_refused(run, tmp_path):
    save_sae(tmp_path / "wide", random_sae(activations(50, D + 1), (32,), 3, 0.5))
    with pytest.raises(UserError, match=f"wide takes {D + 1} dimensions and .*activations has {D}: harvest"):
        import_sae.run(config_of(tmp_path / "wide"), run)
    assert not (run / "sae").exists()


SITES = {
    "ours": ({"source": {"site": "language.2.resid_post"}}, "language.2.resid_post"),
    "ours, exported": ({"dictionary_learning": {"submodule_name": "language.3.resid_mid"}}, "language.3.resid_mid"),
    "dictionary_learning": ({"dictionary_learning": {"layer": 15, "submodule_name": "resid_post"}}, "block 15"),
    "SAELens": ({"saelens": {"hook_name": "blocks.3.hook_resid_pre"}}, "language.2.resid_post"),
}


@pytest.mark.parametrize(("meta", "named"), SITES.values(), ids=SITES)
def test_another_site_is_refused(run, tmp_path, meta, named):
    save_sae(tmp_path / "file", random_sae(activations(50, D), (32,), 3, 0.5, meta=meta))
    with pytest.raises(UserError, match=rf"was trained on {named}, and .* has language\.3\.resid_post: harvest that"):
        import_sae.run(config_of(tmp_path / "file"), run)


@pytest.mark.parametrize(
    "meta", [{}, {"dictionary_learning": {"layer": 3}}, {"saelens": {"hook_name": "blocks.4.hook_resid_pre"}}]
)
def test_the_same_site_or_none_is_taken(run, tmp_path, meta):
    save_sae(tmp_path / "file", random_sae(activations(50, D), (32,), 3, 0.5, meta=meta))
    import_sae.run(config_of(tmp_path / "file"), run)
    found = json.loads((run / "sae" / "sae.json").read_text())["meta"]
    assert found["source"]["site"] == "language.3.resid_post" and meta.items() <= found.items()


def test_without_a_file_or_activations_nothing_is_begun(run, trained, tmp_path):
    with pytest.raises(UserError, match=r"import_sae\.sae names no autoencoder: .* --sae"):
        import_sae.run(config_of(""), run)
    with pytest.raises(UserError, match="nothing does not exist: check the path"):
        import_sae.run(config_of(tmp_path / "nothing"), run)
    with pytest.raises(UserError, match="activations, which no finished stage wrote"):
        import_sae.run(config_of(trained / "export" / "saelens"), tmp_path / "empty")
    assert not (run / "sae").exists() and not (tmp_path / "empty").exists()


@pytest.mark.drill
def test_an_autoencoder_of_the_size_of_maira_2_sae_takes_less_than_4_gib(tmp_path):
    """The layout that its trainer saves, written by dictionary_learning itself, with random weights."""
    d, f = 4096, 16384
    groups = [f // 2, f // 4, f // 8, f // 16, f // 16]
    kind = peers.dictionary_learning("trainers.matryoshka_batch_top_k").MatryoshkaBatchTopKSAE
    theirs = kind(d, f, 256, groups)
    theirs.threshold.fill_(1.5)
    (tmp_path / "sae").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "sae" / "ae.pt")
    trainer = {"dict_class": "MatryoshkaBatchTopKSAE", "k": 256, "layer": 3, "group_sizes": groups}
    files.write_json(tmp_path / "sae" / "config.json", {"trainer": trainer})
    make_store(tmp_path / "run", activations(20_000, d), "bfloat16", 16384, 128)
    start = time.monotonic()
    flags = (f"--workdir={tmp_path / 'run'}", f"--sae={tmp_path / 'sae'}", "--config.train.loss_recovered_studies=0")
    done = launch("import_sae", *flags)
    assert done.returncode == 0, done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{time.monotonic() - start:.0f} s, {peak / 2**30:.2f} GiB: {done.stdout}")
    assert load_sae(tmp_path / "run" / "sae").group_sizes == tuple(groups)
    assert peak < 4 * 2**30
