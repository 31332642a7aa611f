"""The phantom's hidden states: addressed by index, balanced, and consistent with their priors."""

import numpy as np
import pytest

from maira_jax.phantom.world.latents import COLUMN, SLOTS, Latents, prior_truth, sample, truth, uniforms
from maira_jax.studies.concepts import FINDINGS

N = 8000


@pytest.fixture(scope="module")
def latents() -> Latents:
    return sample(0, N, seed=3)


def test_a_study_does_not_depend_on_its_range(latents: Latents) -> None:
    part = sample(1001, 1003, seed=3)
    assert np.array_equal(part.levels, latents.levels[1001:1003])
    assert np.array_equal(part.prior_levels, latents.prior_levels[1001:1003])
    assert np.array_equal(part.has_prior, latents.has_prior[1001:1003])


def test_seeds_and_streams_differ() -> None:
    first = uniforms(0, 50, seed=1, stream=0, width=5)
    assert first.shape == (50, 5)
    assert len(np.unique(first)) == 250
    for seed, stream in ((2, 0), (1, 1)):
        other = uniforms(0, 50, seed=seed, stream=stream, width=5)
        assert not np.isin(other, first).any()


def test_every_finding_is_in_a_fifth_to_two_fifths_of_studies(latents: Latents) -> None:
    for finding in FINDINGS:
        columns = [column for column, slot in enumerate(SLOTS) if slot.finding == finding]
        for rows in (latents.has_prior, ~latents.has_prior):
            share = (latents.levels[rows][:, columns] > 0).any(1).mean()
            assert 0.2 < share < 0.4, (finding, share)
    assert 0.45 < latents.has_prior.mean() < 0.55
    assert 0.1 < (latents.levels == 0).all(1).mean() < 0.2


def test_every_level_of_every_slot_occurs(latents: Latents) -> None:
    for column, slot in enumerate(SLOTS):
        counts = np.bincount(latents.levels[:, column], minlength=slot.levels)
        assert len(counts) == slot.levels
        assert counts.min() > 0.03 * N, slot.name


def test_nothing_is_hidden(latents: Latents) -> None:
    for levels in (latents.levels, latents.prior_levels):
        air = levels[:, [COLUMN["left pneumothorax"], COLUMN["right pneumothorax"]]] > 0
        assert not air.all(1).any()
        for side in ("left", "right"):
            fluid = levels[:, COLUMN[f"{side} pleural effusion"]]
            assert not (levels[fluid >= 2][:, COLUMN[f"{side} lower consolidation"]]).any()
            assert not (levels[fluid == 3][:, COLUMN[f"{side} mid consolidation"]]).any()
    assert not latents.prior_levels[~latents.has_prior].any()


def test_changes_are_those_between_the_two_truths(latents: Latents) -> None:
    sizes = {None: 0, "small": 1, "moderate": 2, "large": 3}
    seen = set()
    for i in range(1500):
        findings = truth(latents, i)
        if not latents.has_prior[i]:
            assert all(finding.change is None for finding in findings)
            continue
        before = {(f.name, f.side, f.zone): f for f in prior_truth(latents, i) if f.status == "present"}
        for finding in findings:
            was = before.get((finding.name, finding.side, finding.zone))
            seen.add(finding.change)
            if finding.change is None:
                assert finding.status == "absent" and was is None
            elif finding.change == "new":
                assert finding.status == "present" and was is None
            elif finding.change == "resolved":
                assert finding.status == "absent" and was is not None
            else:
                assert was is not None
                step = sizes[finding.size] - sizes[was.size]
                assert finding.change == {1: "worse", 0: "unchanged", -1: "improved"}[int(np.sign(step))]
                assert finding.tip == was.tip
    assert seen == {None, "new", "worse", "improved", "unchanged", "resolved"}


def test_truth_names_every_finding_once_a_place(latents: Latents) -> None:
    for i in range(300):
        findings = truth(latents, i)
        places = [(finding.name, finding.side, finding.zone) for finding in findings]
        assert len(set(places)) == len(places)
        assert {finding.name for finding in findings} == set(FINDINGS)
        for name in ("pleural effusion", "pneumothorax"):
            assert {finding.side for finding in findings if finding.name == name} == {"left", "right"}


def test_every_finding_has_a_slot_and_concepts_in_the_same_order() -> None:
    assert tuple(dict.fromkeys(slot.finding for slot in SLOTS)) == FINDINGS
