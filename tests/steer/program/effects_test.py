"""What adding features does by the sweep's program, against whole passes of the plain model and plain generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.generation.decode import generate
from maira_jax.inputs.batches import assemble, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Kind, Tokenizer
from maira_jax.model import language, maira2
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from maira_jax.reports.changes import cached_parse
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.autoencoder import Sae
from steer.config import GENERATED, SteerSection
from steer.methods.method import MethodInputs
from steer.program import effects
from steer.program.effects import ProgramEffects
from steer.program.sweep_writer import SteeredReport, SweepWriter
from steer.selection.by_confidence import confidence_change
from steer.selection.by_output_score import output_score
from steer.selection.rule import EditedModel
from steer.selection.target import Target
from tests.helpers.localized import make_config
from tests.helpers.phantom_model import D_MODEL

FEATURES, LARGEST, STRENGTH = (3, 0, 5), 8.0, 2.0
forward = jax.jit(maira2.forward, static_argnames=("cfg",))


def make(localized_model, positions, site="language.1.resid_post", n=3, **fields) -> ProgramEffects:
    cfg, folder = localized_model.cfg, localized_model.folder
    section = SteerSection.parse(
        {"positions": positions, "strengths": (1.0, STRENGTH), "batch_studies": 2, "batch_rows": 3} | fields
    )
    texts, images = Tokenizer.from_dir(folder), ImageConfig.from_dir(folder)
    model = EditedModel(localized_model.params, cfg, texts, images, Site.parse(site, cfg), section.measured)
    sae = Sae(autoencoder.init(jax.random.key(1), D_MODEL, 8, jnp.zeros(D_MODEL)), 0.1, 4, (8,), {})
    studies = list(load_studies(make_config().studies))[:n]
    return ProgramEffects(model, folder, section, MethodInputs(sae, section.unit, 0, {}), studies, 0)


def targets() -> list[Target]:
    return [Target("cardiomegaly", feature, LARGEST) for feature in FEATURES]


def whole_pass(measured: ProgramEffects, study, feature: int | None) -> np.ndarray:
    """Log-probabilities at the places of a study's report, [t, vocab], by one pass over prompt and report."""
    model = measured.model
    request = reporting_request(study, model.tokenizer, findings=study.findings)
    batch = assemble([request], model.tokenizer, model.image_cfg, 512, 2)
    at = np.flatnonzero(batch.kinds[0] == Kind.FINDINGS)[: measured.section.max_new_tokens] - 1
    edited = measured.section.edited(batch.kinds)
    if GENERATED in measured.section.positions:
        edited[0, at] = True
    direction = jnp.asarray(measured.inputs.decoder_row(feature or 0))[None]
    strength = jnp.full(1, 0.0 if feature is None else STRENGTH * LARGEST)
    mask = jnp.asarray(edited) if model.site.tower == "language" else None
    edits = Edits(jnp.array([model.site.code]), direction, strength, mask)
    out = forward(model.params, model.cfg, batch.tokens, batch.mask, batch.pixels, edits={model.site.tower: edits})
    return np.asarray(jax.nn.log_softmax(out.logits[0, at].astype(jnp.float32)))


def test_features_of_the_projector_at_the_first_token_where_there_is_no_report(localized_model):
    measured = make(localized_model, ("image",), site="projector.1", n=1)
    bare = [dataclasses.replace(study, findings="") for study in measured.studies]
    found = dataclasses.replace(measured, studies=bare).amplified(targets()[:1])
    assert found.rank.shape == (1, 1, 1)
    first = whole_pass(measured, measured.studies[0], FEATURES[0])[0]
    assert found.confidence[0, 0, 0] == pytest.approx(-np.mean(sorted(first)[-effects._N_CONFIDENT :]), abs=1e-4)
    assert abs(found.confidence[0, 0, 0] - found.unsteered[0, 0]) > 1e-3


@pytest.mark.parametrize("positions", [("frontal",), ("generated",)])
def test_amplified_features_are_those_of_whole_passes(localized_model, positions):
    measured = make(localized_model, positions, max_new_tokens=40)
    found, cfg = measured.amplified(targets()), measured.model.cfg
    lens = language.logits(measured.model.params["language"], cfg.text, measured.inputs.sae.params["W_dec"])
    own = np.argsort(-np.asarray(lens), axis=1)[:, : effects._N_LENS_TOKENS]  # [F, k]
    scores, changes = np.zeros(len(FEATURES)), np.zeros(len(FEATURES))
    places = 0
    for number, study in enumerate(measured.studies):
        plain = whole_pass(measured, study, None)
        before = [-np.mean(sorted(row)[-effects._N_CONFIDENT :]) for row in plain]
        assert found.counted[number].sum() == len(plain) == 40
        np.testing.assert_allclose(found.unsteered[number], before, atol=1e-4)
        places += len(plain)
        for column, feature in enumerate(FEATURES):
            logs = whole_pass(measured, study, feature)
            for place, row in enumerate(logs):
                best = max(own[feature], key=lambda token: row[token])
                rank = sum(row > row[best])
                assert found.rank[number, column, place] == rank
                assert found.probability[number, column, place] == pytest.approx(np.exp(row[best]), abs=1e-5)
                scores[column] += (1 - rank / cfg.text.vocab_size) * np.exp(row[best])
                changes[column] += abs(-np.mean(sorted(row)[-effects._N_CONFIDENT :]) - before[place])
    np.testing.assert_allclose(output_score(found, cfg.text.vocab_size), scores / places, atol=1e-5)
    np.testing.assert_allclose(confidence_change(found), changes / places, atol=1e-4)
    assert changes.min() > 0
    assert measured.amplified(targets()) is found, "measured once"


def test_the_pilot_steers_as_plain_generation_does(localized_model, monkeypatch):
    measured = make(localized_model, ("frontal",), max_new_tokens=6, strengths=(-1.0, 1.0, STRENGTH))
    written, write = [], SweepWriter.write
    monkeypatch.setattr(SweepWriter, "write", lambda *args: [written.extend(x := write(*args)), x][1])
    measured.rewards(targets())
    reports = {(n, row): report.text for n, rows in enumerate(written) for row, report in enumerate(rows)}
    model, batch = measured.model, measured._prompts.batch(range(3))
    rows = [(feature, strength) for feature in FEATURES for strength in (-1.0, 1.0, STRENGTH)]
    for row, (feature, strength) in enumerate(rows, start=1):
        direction = jnp.tile(measured.inputs.decoder_row(feature), (3, 1))
        where = jnp.asarray(measured.section.edited(batch.kinds))
        edits = Edits(jnp.full(3, model.site.code), direction, jnp.full(3, strength * LARGEST), where)
        ids, lengths = generate(
            model.params, model.cfg, batch.tokens, batch.mask, batch.pixels, max_new_tokens=6,
            eos_id=model.tokenizer.eos_id, edits=edits, edited="prompt",
        )  # fmt: skip
        for n in range(3):
            assert reports[n, row] == model.tokenizer.decode(np.asarray(ids)[n][: np.asarray(lengths)[n]])


def test_rewards_are_on_minus_off_target_at_the_best_strength(localized_model, monkeypatch):
    has, lacks, other = "The heart is enlarged.", "The heart size is normal.", "There is a pacemaker."
    assert cached_parse(has).concepts["cardiomegaly"] and not cached_parse(lacks).concepts["cardiomegaly"]
    table = {  # of three studies, by feature and strength; the last study has the concept
        3: {1.0: (has, f"{has} {other}", has), 2.0: (has, has, lacks), -1.0: (lacks, lacks, has)},
        0: {1.0: (lacks, has, has), 2.0: ("has " * 9, has, has), -1.0: (lacks, lacks, lacks)},
    }
    originals = (lacks, lacks, has)

    def write(self, studies):
        def text(study, row):
            target = row.direction.target
            return originals[study] if target is None else table[target.feature][row.strength][study]

        return [[SteeredReport(text(study, row), 5, True, True, 1.0) for row in self.rows] for study in studies]

    monkeypatch.setattr(SweepWriter, "write", write)
    measured = make(localized_model, ("frontal",), strengths=(-1.0, 1.0, 2.0))
    own = [Target("cardiomegaly", 3, LARGEST), Target("cardiomegaly", 0, LARGEST)]
    # 3: added (1 + 1) / 2 at 2, removed 0 of the third study. 0: added (0 + 1) / 2 at 1, removed 1.
    np.testing.assert_allclose(measured.rewards(own), [0.5, 0.75])
    measured = dataclasses.replace(measured, studies=measured.studies[:2])
    np.testing.assert_allclose(measured.rewards(own), [1.0, 0.5], err_msg="nobody has the concept to remove")
