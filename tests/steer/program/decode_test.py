"""Sweeps against PyTorch forward hooks and against plain generation, on random weights, float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.generation.decode import generate
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from sae import autoencoder
from steer.methods.intervention import FeatureClamp, Intervention
from steer.program import decode as sweep
from steer.program.edit import ClampEdits, SteeringEdits
from tests.helpers import torch_sites
from tests.helpers.tiny_model import CFG, batch, make

IMAGES, STEPS, LENGTH, N_FEATURES, THRESHOLD = (1, 2, 1), 12, 64, 40, 0.3
SITE = "language.1.resid_post"
WIDTHS = {"language": 48, "vision": 32, "projector": 48}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint"), CFG)


def sae_of(width: int) -> dict[str, np.ndarray]:
    """An autoencoder with about half of its features active on a random residual stream."""
    params = autoencoder.init(
        jax.random.key(5), width, N_FEATURES, 0.1 * jax.random.normal(jax.random.key(6), (width,))
    )
    params["b_enc"] = 0.2 * jax.random.normal(jax.random.key(7), (N_FEATURES,))
    return {name: np.asarray(value) for name, value in params.items()}


Change = Callable[[torch.Tensor], torch.Tensor]  # x [positions, d] -> what is added to it


def add(sae: dict, feature: int, strength: float) -> tuple[dict, Change]:
    vector = sae["W_dec"][feature]
    return {"direction": vector, "strength": strength}, lambda x: torch.full_like(x, strength) * torch.tensor(vector)


def set_features(sae: dict, values: dict[int, float]) -> tuple[dict, Change]:
    """Features set to values: what the decoder makes of it, less what it made before."""
    which = list(values)
    fields = {
        "encoder_directions": sae["W_enc"][:, which].T, "decoder_directions": sae["W_dec"][which],
        "bias": (sae["b_enc"] - sae["b_dec"] @ sae["W_enc"])[which], "threshold": np.full(len(which), THRESHOLD),
        "target": np.array(list(values.values())), "weight": np.ones(len(which)),
    }  # fmt: skip

    def change(x: torch.Tensor) -> torch.Tensor:
        w_enc, b_enc, w_dec, b_dec = (torch.tensor(sae[name]) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        f = torch.relu((x - b_dec) @ w_enc + b_enc)
        f = torch.where(f > THRESHOLD, f, 0)
        after = f.clone()
        after[:, which] = torch.tensor(list(values.values()))
        return (after @ w_dec + b_dec) - (f @ w_dec + b_dec)

    return fields, change


def project_out(sae: dict, feature: int) -> tuple[dict, Change]:
    vector = sae["W_dec"][feature]
    one = {"encoder_directions": vector[None], "decoder_directions": vector[None], "bias": np.zeros(1)}
    fields = one | {"threshold": np.full(1, -np.inf), "target": np.zeros(1), "weight": np.ones(1)}
    return fields, lambda x: -(x @ torch.tensor(vector))[:, None] * torch.tensor(vector)


def combined(*parts: tuple[dict, Change]) -> tuple[dict, Change]:
    fields = {name: value for part, _ in parts for name, value in part.items()}
    return fields, lambda x: sum(change(x) for _, change in parts)


def kinds(sae: dict) -> dict[str, tuple[dict, Change]]:
    return {
        "nothing": ({}, torch.zeros_like),
        "add": add(sae, 3, 6.0),
        "clamp": set_features(sae, {8: 9.0}),
        "ablate": set_features(sae, {int(f): 0.0 for f in range(0, N_FEATURES, 2)}),
        "project": project_out(sae, 3),
        "add and clamp two": combined(add(sae, 4, -5.0), set_features(sae, {8: 4.0, 11: 0.0})),
    }


def edits_of(made: list[dict], site: str, width: int) -> SteeringEdits:
    """The rows of `made`, padded to the largest number of features."""
    n, max_features = len(made), max(len(fields.get("weight", ())) for fields in made)
    arrays = {
        "direction": np.zeros((n, width), np.float32), "strength": np.zeros(n, np.float32),
        "encoder_directions": np.zeros((n, max_features, width), np.float32),
        "decoder_directions": np.zeros((n, max_features, width), np.float32),
        **{name: np.zeros((n, max_features), np.float32) for name in ("bias", "threshold", "target", "weight")},
    }  # fmt: skip
    for row, fields in enumerate(made):
        for name, value in fields.items():
            if name in ("direction", "strength"):
                arrays[name][row] = value
            else:
                arrays[name][row, : len(value)] = value
    direction, strength, *clamps = (jnp.asarray(array) for array in arrays.values())
    code = jnp.full(n, Site.parse(site, CFG).code, jnp.int32)
    feature = jnp.full((n, max_features), -1)
    clamp_edits = ClampEdits(**dict(zip(list(arrays)[2:], clamps, strict=True)), feature=feature)
    return SteeringEdits(site=code, direction=direction, strength=strength, clamps=clamp_edits)


def swept(
    params, site: str, edits: SteeringEdits, edited: np.ndarray | None, generated: bool, slots: int = 4, **kwargs
):
    """All rows of `edits` for the three studies. edited: bool [studies, positions], None where no prompt is edited."""
    tokens, mask, pixels, _ = batch(IMAGES, LENGTH)
    shape = sweep.SweepShape.of(
        Site.parse(site, CFG), edited is not None,
        slots=slots, max_new_tokens=kwargs.get("steps", STEPS), eos_id=kwargs.get("eos_id", -1),
    )  # fmt: skip
    where = np.zeros_like(mask) if edited is None else edited
    prompts = sweep.prefill(params, CFG, shape, tokens, mask, pixels, where)
    count = kwargs.get("count", np.full(len(tokens), len(edits.site)))
    return sweep.write_rows(params, CFG, shape, prompts, sweep.SteeredRows.of(edits, generated, count))


def hooked(oracle, site: str, change: Change, edited: np.ndarray, generated: bool) -> np.ndarray:
    """transformers' greedy decoding with a forward hook that changes the tokens in `edited` and the generated ones."""
    tokens, mask, _, flat = batch(IMAGES, LENGTH)
    where = torch_sites.left_padded(edited & mask, mask)
    where[:, -1] |= generated
    images_only = not site.startswith("language")

    def act(x: torch.Tensor) -> None:
        if images_only:
            x += torch.stack([change(image) for image in x])
            return
        for row in range(len(x)):
            here = torch.tensor(where[row]) if x.shape[1] == LENGTH else torch.full((x.shape[1],), generated)
            x[row] = torch.where(here[:, None], x[row] + change(x[row]), x[row])

    with torch.no_grad():
        handle = torch_sites.attach(site, act, *oracle.parts)
        try:
            return oracle.greedy(tokens, mask, flat, STEPS)
        finally:
            handle.remove()


def section(start: int, stop: int) -> np.ndarray:
    edited = np.zeros((len(IMAGES), LENGTH), bool)
    edited[:, start:stop] = True
    return edited


SCOPES = {
    "generated tokens": (None, True),
    "the whole sequence": (section(0, LENGTH), True),
    "a section of the prompt": (section(20, 60), False),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("site", [SITE, "language.2.resid_mid", "language.embed"])
def test_every_edit_equals_a_pytorch_hook(both, site, scope):
    params, oracle = both
    made = kinds(sae_of(48))
    edited, generated = SCOPES[scope]
    edits = edits_of([fields for fields, _ in made.values()], site, 48)
    ours, _, sound = swept(maira2.unstacked(params), site, edits, edited, generated)
    assert sound.all()
    plain = edited if edited is not None else section(0, 0)
    for row, (name, (_, change)) in enumerate(made.items()):
        theirs = hooked(oracle, site, change, plain, generated)
        np.testing.assert_array_equal(ours[:, row], theirs, err_msg=name)
        assert name == "nothing" or (ours[:, row] != ours[:, 0]).any(), f"{name} changes nothing"


@pytest.mark.parametrize("site", ["vision.1.resid_post", "vision.output", "projector.2"])
def test_edits_of_images_equal_a_pytorch_hook(both, site):
    params, oracle = both
    width = WIDTHS[site.split(".")[0]]
    made = {name: made for name, made in kinds(sae_of(width)).items() if name != "nothing"}
    edits = edits_of([fields for fields, _ in made.values()], site, width)
    ours, _, _ = swept(maira2.unstacked(params), site, edits, None, False)
    for row, (name, (_, change)) in enumerate(made.items()):
        theirs = hooked(oracle, site, change, section(0, 0), False)
        np.testing.assert_array_equal(ours[:, row], theirs, err_msg=name)
    assert (ours[:, 0] != ours[:, 2]).any()


@pytest.mark.parametrize("site", [SITE, "vision.1.resid_post"])
def test_of_the_k_largest_features_those_that_a_token_keeps_are_read(both, site):
    params, oracle = both
    width, k = WIDTHS[site.split(".")[0]], 4
    arrays = sae_of(width)
    sae = autoencoder.Sae(arrays, 0.0, k, (N_FEATURES,), per_token=True)
    removed = {feature: 0.0 for feature in range(0, N_FEATURES, 2)}
    values: tuple[dict[int, float], ...] = ({}, {8: 9.0}, removed)
    vector = np.zeros(width, np.float32)
    made = [
        Intervention.setting(FeatureClamp.of_features(sae, of), 1.0) if of else Intervention(vector, 0.0)
        for of in values
    ] + [Intervention.setting(FeatureClamp.removing(arrays["W_dec"][3]), 1.0)]
    place = Site.parse(site, CFG)
    edits = SteeringEdits.of(made, [1.0] * len(made), [place] * len(made))
    edited, generated = SCOPES["the whole sequence"] if place.tower == "language" else (None, False)
    ours, _, _ = swept(maira2.unstacked(params), site, edits, edited, generated)

    def change(x: torch.Tensor, of: dict[int, float]) -> torch.Tensor:
        w_enc, b_enc, w_dec, b_dec = (torch.tensor(arrays[name]) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
        z = torch.relu((x - b_dec) @ w_enc + b_enc)
        largest = z.topk(k, dim=-1)
        f = torch.zeros_like(z).scatter(-1, largest.indices, largest.values)
        after = f.clone()
        after[:, list(of)] = torch.tensor(list(of.values()))
        return (after - f) @ w_dec

    plain = section(0, 0) if edited is None else edited
    for row, of in enumerate(values):
        theirs = hooked(oracle, site, functools.partial(change, of=of), plain, generated)
        np.testing.assert_array_equal(ours[:, row], theirs, err_msg=str(of))
        assert not of or (ours[:, row] != ours[:, 0]).any(), f"{of} changes nothing"
    theirs = hooked(oracle, site, project_out(arrays, 3)[1], plain, generated)
    np.testing.assert_array_equal(ours[:, len(values)], theirs)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_sweep_writes_what_plain_generation_writes(both, scope):
    """Rows of all kinds, more than there are places, each with its own end and its own count of rows."""
    params, _ = both
    tokens, mask, pixels, _ = batch(IMAGES, LENGTH)
    sae = sae_of(48)
    made = [f for f, _ in kinds(sae).values()] + [add(sae, i, 5.0)[0] for i in range(5)]
    edited, generated = SCOPES[scope]
    edits = edits_of(made, SITE, 48)
    free, _, _ = swept(maira2.unstacked(params), SITE, edits, edited, generated, steps=20)
    eos = int(np.bincount(free.ravel()).argmax())
    count = np.array([11, 3, 9])
    ours, lengths, _ = swept(
        maira2.unstacked(params), SITE, edits, edited, generated, slots=3, steps=20, eos_id=eos, count=count
    )
    assert len(np.unique(lengths[0])) > 2, "rows end at different lengths"
    for row in range(len(made)):
        each = jax.tree.map(lambda leaf, row=row: jnp.repeat(leaf[row : row + 1], 3, axis=0), edits)
        each = each.replace(mask=None if edited is None else jnp.asarray(edited))
        where = "generated" if edited is None else "both" if generated else "prompt"
        theirs, theirs_lengths = generate(
            params, CFG, tokens, mask, pixels, max_new_tokens=20, eos_id=eos, edits=each, edited=where
        )  # fmt: skip
        for study in range(3):
            if row < count[study]:
                np.testing.assert_array_equal(ours[study, row], theirs[study])
                assert lengths[study, row] == theirs_lengths[study]
            else:
                assert not ours[study, row].any()


def test_one_program_serves_a_sweep_whatever_is_steered(both):
    params, _ = both
    params, sae = maira2.unstacked(params), sae_of(48)
    programs = (sweep.prefill, sweep.begin, sweep.advance)
    before = [program._cache_size() for program in programs]
    for seed, site in enumerate((SITE, "language.3.resid_post", "language.0.resid_mid")):
        made = [add(sae, seed, 1.0 + seed)[0], set_features(sae, {seed: 2.0})[0], project_out(sae, seed + 3)[0]]
        swept(params, site, edits_of(made, site, 48), None, True, slots=2, steps=7)
    assert [program._cache_size() - size for program, size in zip(programs, before, strict=True)] == [1, 1, 1]


def test_a_row_that_breaks_is_reported_and_harms_no_other(both):
    params, _ = both
    sae = sae_of(48)
    made = [add(sae, 1, 2.0)[0], add(sae, 1, float("nan"))[0]] * 3
    ours, _, sound = swept(maira2.unstacked(params), SITE, edits_of(made, SITE, 48), None, True, slots=2)
    np.testing.assert_array_equal(sound, np.tile([True, False], (3, 3)))
    for row in (2, 4):
        np.testing.assert_array_equal(ours[:, row], ours[:, 0])


def test_memory_grows_with_new_tokens_and_not_with_rows_times_prompt(both):
    """Twice the rows cost their own tokens' keys and values, and no copy of any prompt."""
    params, _ = both
    params = maira2.unstacked(params)
    tokens, mask, pixels, _ = batch(IMAGES, LENGTH)
    sae = sae_of(48)

    def size(slots: int) -> int:
        shape = sweep.SweepShape.of(Site.parse(SITE, CFG), False, slots=slots, max_new_tokens=STEPS, eos_id=-1)
        edits = edits_of([add(sae, 0, 1.0)[0]] * 64, SITE, 48)
        rows = sweep.SteeredRows.of(edits, True, np.full(3, 64))
        prompts = jax.eval_shape(
            lambda *x: sweep.prefill(params, CFG, shape, *x), tokens, mask, pixels, np.zeros_like(mask)
        )
        state = jax.eval_shape(lambda p: sweep.begin(CFG, shape, p, rows), prompts)
        lowered = sweep.advance.lower(params, CFG, shape, prompts, rows, state, jnp.int32(1))
        found = lowered.compile().memory_analysis()
        return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes

    per_row = (size(64) - size(32)) / (3 * 32)
    text = CFG.text
    one_token = 2 * text.num_hidden_layers * text.hidden_size * 4  # keys and values, bytes
    assert per_row < 4 * STEPS * one_token < LENGTH * one_token


def test_mean_nll_is_the_mean_negative_log_likelihood(both):
    params, oracle = both
    tokens, mask, pixels, flat = batch(IMAGES, LENGTH)
    rng = np.random.default_rng(3)
    texts = rng.integers(3, 290, (3, 2, 9)).astype(np.int32)
    lengths = np.array([[9, 4], [1, 9], [5, 6]])
    shape = sweep.SweepShape.of(Site.parse(SITE, CFG), False, slots=1, max_new_tokens=9, eos_id=-1)
    unstacked = maira2.unstacked(params)
    prompts = sweep.prefill(unstacked, CFG, shape, tokens, mask, pixels, np.zeros_like(mask))
    ours = np.asarray(sweep.mean_nll(unstacked, CFG, prompts, texts, lengths))
    left, seen = torch_sites.left_padded(tokens, mask), torch_sites.left_padded(mask, mask)
    for row in range(2):
        whole = np.concatenate([left, texts[:, row]], axis=1)
        logits = oracle.forward(whole, np.concatenate([seen, np.ones((3, 9), bool)], axis=1), flat)
        chosen = torch.log_softmax(torch.tensor(logits[:, LENGTH - 1 : -1]), -1).numpy()
        nll = -np.take_along_axis(chosen, texts[:, row, :, None], -1)[..., 0]
        for study in range(3):
            n = lengths[study, row]
            np.testing.assert_allclose(ours[study, row], nll[study, :n].mean(), rtol=1e-5)
