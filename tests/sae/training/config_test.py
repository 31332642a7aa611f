"""The sections of an autoencoder and its training: refusals, presets, companions, and what decides a result."""

import pytest

from maira_jax.errors import UserError
from sae.training import config
from sae.training.config import SaeConfig, SaeSection, TrainConfig, TrainSection, group_sizes
from tests.helpers.sae import train_config


def resolve(config) -> tuple[SaeConfig, TrainConfig]:
    train = TrainSection.of(config)
    (section, *_) = SaeSection.of(config).autoencoders().values()
    sae = SaeConfig.resolve(section, 24, train.preset)
    return sae, TrainConfig.resolve(train, sae, 0)


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("sae", "k", 0, r"sae\.k is 0"),
        ("sae", "k", 97, "between 1 and the 96 features"),
        ("sae", "kind", "topk", "choose from batch_top_k"),
        ("sae", "expansion", 0.0, r"sae\.expansion is 0\.0, but must be above 0"),
        ("sae", "expansion", 0.5, "change sae.group_fractions or sae.expansion"),
        ("sae", "group_fractions", (0.5, 0.4), "sum to 1"),
        ("sae", "group_fractions", (1.5, -0.5), "must be above 0"),
        ("sae", "group_weights", (1.0,), "1 entries for 5 groups"),
        ("sae", "companions", {"x2": {"expansions": 2}}, r"sae\.companions\.x2 sets expansions"),
        ("sae", "companions", {"x 2": {"expansion": 2}}, r"sae\.companions\.x 2 is not a name"),
        ("sae", "companions", {"x2": {"k": 0}}, r"sae\.companions\.x2\.k is 0"),
        ("train", "batch_size", 0, r"train\.batch_size is 0"),
        ("train", "batch_size", 2**26, "exceeds 2\\^31"),
        ("train", "warmup_steps", 60, "below the 60 steps"),
        ("train", "decay_start", 61, r"train\.decay_start is 61"),
        ("train", "preset", "best", "choose from dictionary_learning, scaled"),
        ("train", "dtype", "float16", r"train\.dtype is 'float16'"),
        ("train", "source", "disk", r"train\.source is 'disk'"),
        ("train", "microbatches", 3, r"times train\.microbatches"),
        ("train", "checkpoint_every", 7, "must be a multiple of 10"),
        ("train", "evaluate_every", 7, "evaluate_every is 7"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(section, field, value, message):
    config = train_config()
    with config.unlocked():
        config[section][field] = value
    with pytest.raises(UserError, match=message):
        resolve(config)


@pytest.mark.parametrize("mesh, message", [((3, 1), "multiple of the data axis"), ((1, 64), "cannot be split")])
def test_a_mesh_that_does_not_divide_is_refused(mesh, message):
    train = TrainSection.of(train_config())
    sae = resolve(train_config())[0]
    with pytest.raises(UserError, match=message):
        TrainConfig.resolve(train, sae, 0, mesh)


@pytest.mark.parametrize(
    "devices, processes, memory, microbatches, mesh",
    [
        (8, 1, None, 1, (8, 1)),
        (6, 1, None, 1, (4, 1)),
        (8, 1, None, 8, (4, 1)),
        (8, 1, 50_000, 1, (2, 4)),
        (8, 1, 1, 1, (1, 8)),
        (12, 4, None, 1, (8, 1)),
        (12, 4, 100_000, 1, (4, 2)),
    ],
)
def test_the_chosen_mesh_divides_the_batch_and_holds_the_state(
    devices, processes, memory, microbatches, mesh, monkeypatch
):
    monkeypatch.setattr(config.processes, "devices", lambda: [None] * devices)
    monkeypatch.setattr(config.processes, "count", lambda: processes)
    monkeypatch.setattr(config, "device_memory", lambda: memory)
    settings = train_config(batch_size=32, microbatches=microbatches)
    settings.sae.group_fractions = (0.5, 0.5)
    assert resolve(settings)[1].mesh == mesh


def test_processes_that_cannot_share_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr(config.processes, "devices", lambda: [None] * 6)
    monkeypatch.setattr(config.processes, "count", lambda: 3)
    with pytest.raises(UserError, match="train.batch_size 32 .* over the devices of 3 processes"):
        resolve(train_config(batch_size=32))


def test_open_fields_are_those_of_the_preset():
    config = train_config(preset="dictionary_learning", steps=2000, decay_start=None, lr=None, auxk_alpha=None)
    sae, train = resolve(config)
    assert sae.group_weights == (1 / 25,) * 5
    assert (train.decay_start, train.auxk_alpha, train.beta2, train.threshold_start) == (2000, 1 / 32, 0.999, 1000)
    assert train.warmup_steps == 5  # given


def test_companions_differ_in_the_fields_that_they_set():
    config = train_config()
    config.sae.companions = {"topk": {"kind": "top_k", "group_fractions": (1.0,)}}
    found = SaeSection.of(config).autoencoders()
    assert list(found) == ["sae", "sae-topk"]
    assert (found["sae-topk"].kind, found["sae-topk"].k, found["sae-topk"].group_fractions) == ("top_k", 4, (1.0,))
    assert not found["sae"].companions and not found["sae-topk"].companions


def test_groups_are_rounded_down_and_the_last_has_the_rest():
    assert group_sizes((0.5, 0.25, 0.25), 11) == (5, 2, 4)


def test_how_a_result_is_computed_does_not_decide_it():
    computing = {"microbatches", "checkpoint_every", "checkpoint_minutes", "evaluate_every", "readers"}
    assert set(TrainSection().computing()) == computing
