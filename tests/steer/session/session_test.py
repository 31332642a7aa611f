"""A session, from opening a run to comparing reports, against the stages and slow versions of what it computes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from pyarrow import fs

import maira_jax
from maira_jax.errors import UserError
from maira_jax.generation.decode import generate
from maira_jax.generation.grounding import Phrase, PhraseBox
from maira_jax.inputs.batches import assemble, reporting_request
from maira_jax.model import maira2
from maira_jax.model.maira2 import Edits
from maira_jax.run import storage
from maira_jax.studies.study import Study
from sae.formats import safetensors as plain_file
from sae.saved import load_sae
from steer.session.reports import Report
from tests.helpers import bucket as buckets
from tests.helpers import session_run
from tests.helpers.phantom_model import D_MODEL
from tests.helpers.session_run import N_FEATURES, SITE


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return session_run.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(workdir):
    return maira_jax.open_run(workdir)


@pytest.fixture
def compiled():
    """Names of what is compiled during the test."""
    found, running = [], [True]

    def listen(event, seconds, **kwargs):
        if running[0] and event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield found
    running[0] = False


def plain(run, study, feature, length):
    """What `generation.decode` writes with a decoder row added where tokens are generated, without a session."""
    model, row = run.model, np.asarray(run.sae.params["W_dec"])[feature]
    batch = assemble([reporting_request(study, model.tokenizer)], model.tokenizer, model.image_cfg, model.length, 3)
    edits = Edits(jnp.full(1, run.site.code, jnp.int32), jnp.asarray(row)[None], jnp.full(1, length, jnp.float32))
    ids, lengths = generate(
        model.params, model.cfg, batch.tokens, batch.mask, batch.pixels,
        max_new_tokens=12, eos_id=model.tokenizer.eos_id, edits=edits, edited="generated",
    )  # fmt: skip
    return model.tokenizer.decode(np.asarray(ids[0])[: int(lengths[0])])


def test_a_run_is_opened_with_what_it_holds(run):
    assert run.study_ids == [f"phantom-2-{i:06d}" for i in range(8)]
    assert run.held_out_ids == run.study_ids[1::2]
    assert run.site.name == SITE and "64 features at language.1.resid_post, 8 studies" in repr(run)


def test_a_run_in_a_bucket_is_opened_as_one_in_a_folder(run, workdir, tmp_path, monkeypatch):
    with buckets.served() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "_attached", [])
        monkeypatch.setattr(storage, "default_scratch", lambda: tmp_path / "scratch")
        with pytest.raises(UserError, match=f"s3://{buckets.NAME}/run holds no run whose model was converted"):
            maira_jax.open_run(f"s3://{buckets.NAME}/run")
        to = fs.S3FileSystem(endpoint_override=bucket.endpoint, scheme="http")
        fs.copy_files(str(workdir), f"{buckets.NAME}/run", destination_filesystem=to)
        remote = maira_jax.open_run(f"s3://{buckets.NAME}/run")
        study = run.held_out_ids[0]
        assert repr(remote.features(study)) == repr(run.features(study))
        assert not list((tmp_path / "scratch").rglob("values.zarr"))


def test_reports_and_steered_reports_are_those_of_plain_generation(run):
    study = run.study(run.study_ids[1])
    found = run.steer(study, 5, 1.5)
    assert run.report(study.study_id).text == found.before.text == plain(run, study, 5, 0.0) != ""
    assert found.after.text == plain(run, study, 5, 1.5 * 6.0) != found.before.text
    assert found.concept == "pleural effusion" and "left pleural effusion, strength 1.5" in found.title


def test_features_directions_and_functions_are_the_same_edit(run):
    study, row = run.study_ids[2], np.asarray(run.sae.params["W_dec"])[9]
    by_feature = run.steer(study, {run.feature(9): 2.0}, 2.0)
    by_direction = run.steer(study, row, 4 * 6.0)
    by_function = run.steer(study, lambda x: x + 12 * row.astype(x.dtype), 2.0)
    assert by_feature.after.text == by_direction.after.text == by_function.after.text != by_feature.before.text
    assert run.steer(study, row, 0.0).after.text == by_feature.before.text


def test_features_are_set_as_the_sweep_sets_them(run):
    """Setting a feature to the value that it has changes nothing; setting it to another one does."""
    study = run.study_ids[2]
    both = run.steer(study, {5: 4.0, 9: -1.0}, method="clamp"), run.steer(study, {5: 0.0}, method="clamp")
    assert both[0].after.text != both[0].before.text == both[1].before.text
    assert both[0].after.text != run.steer(study, {5: 4.0, 9: -1.0}).after.text


def test_another_feature_strength_or_study_compiles_nothing(run, compiled):
    study, other = run.study_ids[:2]
    run.steer(study, 5, 1.0)
    run.features(study)
    run.read(study, SITE)
    del compiled[:]
    run.report(other)
    run.steer(other, 9, -3.0)
    run.steer(study, {5: 1.0, 9: 2.0, 11: -1.0}, method="clamp")
    run.steer(study, np.ones(D_MODEL), 2.0)
    run.features(other)
    run.find_by_text("There is a left pleural effusion.")
    assert not compiled
    run.steer(study, lambda x: x)
    assert compiled, "a function of its own is another program"


def test_a_site_is_read_with_its_words(run):
    study = run.study(run.study_ids[0])
    found, request = run.read(study), reporting_request(study, run.model.tokenizer, findings=study.findings)
    batch = assemble([request], run.model.tokenizer, run.model.image_cfg, len(request.encoded))
    theirs = jax.jit(
        lambda params: maira2.forward(
            params, run.model.cfg, batch.tokens, batch.mask, batch.pixels, read=(run.site,), logits=False
        )
    )(run.model.params).sites[SITE][0]
    np.testing.assert_allclose(found.array, theirs, rtol=1e-4, atol=1e-5)
    sections = np.asarray(found.tokens["section"].to_pylist())
    words = "".join(np.asarray(found.tokens["token"].to_pylist())[sections == "findings"])
    assert words.strip() == study.findings
    images = found.tokens.filter(sections == "image")
    assert images["patch"].to_pylist()[:4] == [0, 1, 2, 3] and not any(images["token"].to_pylist())
    report = Report(study, "No pneumothorax.")
    assert report.text in "".join(run.read(report).tokens["token"].to_pylist())


@pytest.mark.parametrize("site, rows", [("vision.0.resid_post", 5), ("projector.1", 4)])
def test_a_site_of_images_has_a_row_per_patch(run, site, rows):
    study = dataclasses.replace(run.study(run.study_ids[0]), prior_frontal=None)
    found = run.read(study, site)
    assert found.array.shape == (rows, 32) and found.tokens["patch"].to_pylist()[-4:] == [0, 1, 2, 3]


def test_the_strongest_features_are_those_of_the_largest_activations(run):
    study = run.study_ids[3]
    found, x = run.features(study), run.read(study).array
    theirs = np.asarray(load_sae(run.folder / "sae").encode(jnp.asarray(x)))
    np.testing.assert_allclose(found.activations.toarray(), theirs, rtol=1e-4, atol=1e-5)
    trained = ("indication", "technique", "comparison", "prior_report", "findings")
    last_patch = found.tokens["patch"].to_numpy() == run.model.cfg.vision.patches - 1
    counted = np.isin(found.tokens["section"].to_pylist(), trained) | last_patch
    largest = np.where(counted[:, None], theirs, 0).max(axis=0)
    assert [one.feature.number for one in found[:5]] == np.argsort(-largest, kind="stable")[:5].tolist()
    assert found[0].activation == pytest.approx(largest.max(), rel=1e-4)
    words = run.study(study).findings.split()[:2]
    part = found.on_words(" ".join(words))
    rows = np.flatnonzero(part.counted)
    spoken = "".join(found.tokens["token"].to_pylist()[row] for row in rows)
    assert words[0] in spoken and len(rows) < 12
    assert part[0].activation == pytest.approx(theirs[rows].max(), rel=1e-4)
    assert part[0].word in " ".join(words) or part[0].word.startswith(words[0])


def test_features_are_found_by_words_by_concept_and_by_text(run):
    assert [one.number for one in run.find_by_words("Pleural Effusion")] == [5]
    assert [one.number for one in run.find_by_words("effusion")] == [5]  # the other one denies it
    assert [(one.number, one.concept_f1) for one in run.find_by_concept("pleural effusion")] == [(5, 0.9), (7, 0.7)]
    text = "There is a large left pleural effusion."
    found, study = run.find_by_text(text), Study("own", "own", frontal=None, findings=text)
    sections = run.features(study).on_section("findings")
    assert found[:3] == sections[:3] and found.counted.sum() < len(found.counted)
    assert [max(one.activations) for one in run.feature(5).exemplars] == [3.0, 2.0]


def test_what_does_not_exist_is_answered_with_what_is_near(run, workdir):
    study = run.study_ids[0]
    wrong = {
        "there is no study 'phantom-2-00001', the nearest are 'phantom-2-00000": lambda: run.report("phantom-2-00001"),
        "there is no site 'languge.1.resid_post', the nearest are 'language.1.resid_post'": lambda: run.read(
            study, "languge.1.resid_post"
        ),
        "there is no feature 64: features are numbered from 0 to 63": lambda: run.steer(study, 64),
        "asked for by its number, not 'effusion': find_by_words": lambda: run.feature("effusion"),
        "the nearest are 'pleural effusion', 'left pleural effusion'": lambda: run.find_by_words("plural efusion"),
        "there is no concept 'cardiomegally', the nearest is 'cardiomegaly'": lambda: run.find_by_concept(
            "cardiomegally"
        ),
        "detects 'Edema': it is rare": lambda: run.find_by_concept("Edema"),
        "the nearest are 'generated'": lambda: run.steer(study, 5, at="generate"),
        "of width 32: change it": lambda: run.steer(study, np.ones(31)),
        "only images are edited: say at='image'": lambda: run.steer(study, np.ones(32), site="vision.embed"),
        "features are of language.1.resid_post, not of language.0": lambda: run.steer(
            study, 5, site="language.0.resid_post"
        ),
        "does not hold 'elephant': it is": lambda: run.features(study).on_words("elephant"),
        "has no image: vision.embed is a site of images": lambda: run.read(
            Study("t", "t", frontal=None, indication="Cough."), "vision.embed"
        ),
        f"there is no run '{workdir.name}x', the nearest": lambda: maira_jax.open_run(f"{workdir}x"),
        "no set of interpretations 'other': choose from interp": lambda: maira_jax.open_run(
            workdir, interpretations="other"
        ),
    }
    for words, call in wrong.items():
        with pytest.raises(UserError) as found:
            call()
        assert words in str(found.value)


def test_a_run_of_which_a_file_was_changed_is_not_opened(workdir):
    path = workdir / "activations" / "studies.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    with pytest.raises(UserError, match="studies.parquet is not what the stage wrote.*launch.harvest"):
        maira_jax.open_run(workdir)
    path.write_bytes(whole)


def test_a_checkpoint_is_opened_with_an_autoencoder_of_any_format(run, workdir, tmp_path):
    sae = load_sae(workdir / "sae")
    plain_file.save(tmp_path, dataclasses.replace(sae, meta={}), True)
    with pytest.raises(UserError, match="does not name the site that it is of: say site="):
        maira_jax.open_checkpoint(workdir / "model", sae=tmp_path)
    found = maira_jax.open_checkpoint(workdir / "model", sae=tmp_path, site=SITE)
    study = run.study(run.study_ids[0])
    assert [one.feature.number for one in found.features(study)[:3]] == [
        one.feature.number for one in run.features(study)[:3]
    ]
    with pytest.raises(UserError, match="largest activation of feature 5 is not known here: say unit='raw'"):
        found.steer(study, 5)
    with pytest.raises(UserError, match="there is no study 's1': give a maira_jax.Study"):
        found.report("s1")
    assert found.sae.n_features == N_FEATURES


def test_what_notebooks_show_is_escaped_and_loads_nothing(run):
    study = run.study(run.study_ids[0])
    hostile = dataclasses.replace(study, indication='<img src="http://x/y.png">', findings="No <b>effusion</b> & none.")
    active = run.features(hostile)
    box = Phrase("<i>effusion</i>", (PhraseBox(0.5, 0.25, 0.25, 0.75),))
    shown = [
        active, active.show(6), run.feature(6), run.feature(5), run.find_by_words("denies"),
        Report(hostile, hostile.findings), Report(hostile, "x", (box, Phrase("<u>none</u>"))),
        Report(hostile, "x", (box,)).compare(Report(hostile, "y", (box, box))),
        Report(hostile, "No <b>effusion</b>.").compare(Report(hostile, "An <b>effusion</b>.")),
    ]  # fmt: skip
    for one in shown:
        html, text = str(one._repr_html_()), repr(one)
        assert html and text
        for tag in ("<img", "<b>e", "<i>", "<u>", "<script", "url("):
            assert tag not in html, (tag, html)
        assert all(
            address.startswith("data:image/jpeg;base64,") for address in re.findall(r'(?:href|src)="(.*?)"', html)
        )
    assert str(shown[-2]._repr_html_()).count("data:image/jpeg") == 2, "boxes before and after"
    difference = str(shown[-1]._repr_html_())
    assert "<del" in difference and "No</del>" in difference and "An</ins>" in difference
    assert "data:image/jpeg;base64," in str(active.show(active[0])._repr_html_())


def test_steered_reports_have_boxes_where_they_are_asked_for(run):
    study = run.study_ids[1]
    found = run.steer(study, 5, 1.5, grounded=True)
    assert found.before == run.report(study, grounded=True) != found.after
    assert found.before.text != run.report(study).text, "the prompt is another one"


def test_weights_stay_where_they_are(run):
    before = jax.tree.leaves(run.model.params)
    run.report(run.study_ids[0])
    assert all(one is other for one, other in zip(before, jax.tree.leaves(run.model.params), strict=True))
