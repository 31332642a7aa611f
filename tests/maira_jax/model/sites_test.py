"""Reading and editing at every site: what it gives, against PyTorch hooks, and what it costs."""

import dataclasses
import functools
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maira_jax.errors import UserError
from maira_jax.generation.decode import generate
from maira_jax.model import maira2
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import TOWERS, Site
from tests.helpers import torch_sites
from tests.helpers.tiny_model import CFG, all_sites, batch, forward, make, relative

WIDTH = {"vision": CFG.vision.hidden_size, "projector": CFG.text.hidden_size, "language": CFG.text.hidden_size}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("checkpoint"), CFG)


def edits_at(sites: tuple[Site | None, ...], seed: int, masks: dict[str, np.ndarray] | None = None) -> dict[str, Edits]:
    """Row i is edited at sites[i] alone, in a direction and with a strength of its own."""
    rng = np.random.default_rng(seed)
    return {
        tower: Edits(
            site=jnp.array([site.code if site else 0 for site in sites], jnp.int32),
            direction=jnp.asarray(rng.normal(size=(len(sites), WIDTH[tower])), jnp.float32),
            strength=jnp.array(
                [(-1) ** i * 2 if site and site.tower == tower else 0 for i, site in enumerate(sites)], jnp.float32
            ),
            mask=None if masks is None else jnp.asarray(masks[tower]),
        )
        for tower in TOWERS
    }


def hook_edits(stack: ExitStack, oracle, sites, edits: dict[str, Edits], images: tuple[int, ...], mask) -> None:
    """The same edits as PyTorch hooks, on each row's slice of the tensors."""
    first = np.concatenate([[0], np.cumsum(images)])
    for row, site in enumerate(sites):
        if site is None:
            continue
        edit = edits[site.tower]
        delta = torch.tensor(np.asarray(edit.strength[row] * edit.direction[row]))
        kept = torch.tensor(mask[row] if edit.mask is None else np.asarray(edit.mask[row]))

        def action(x, row=row, site=site, delta=delta, kept=kept, everywhere=edit.mask is None):
            if site.tower == "language":
                x[row, kept & torch.from_numpy(mask[row])] += delta
            else:
                for image in range(images[row]):
                    where = slice(None) if everywhere else kept[image]
                    x[first[row] + image, where] += delta

        stack.callback(torch_sites.attach(site.name, action, *oracle.parts).remove)


def test_an_edit_at_any_site_equals_a_pytorch_hook(both):
    params, oracle = both
    images = (2, 1, 1, 3)
    tokens, mask, pixels, flat = batch(images)
    plain = np.asarray(forward(params, CFG, tokens, mask, pixels).logits)
    everywhere = all_sites(CFG)
    forward.clear_cache()
    unedited = np.asarray(forward(params, CFG, tokens, mask, pixels, edits=edits_at((None,) * 4, 0)).logits)
    # As users have them, both programs give the same bits; with few optimisations each rounds in its own way.
    little_optimised = jax.config.values["jax_disable_most_optimizations"]
    assert relative(unedited, plain) <= (2e-6 if little_optimised else 0)
    for start in range(0, len(everywhere), 3):
        part = everywhere[start : start + 3]
        sites = (*part, *(None,) * (4 - len(part)))  # at least the last row stays as it is
        edits = edits_at(sites, start)
        ours = np.asarray(forward(params, CFG, tokens, mask, pixels, edits=edits).logits)
        with ExitStack() as stack:
            hook_edits(stack, oracle, sites, edits, images, mask)
            theirs = oracle.forward(tokens, mask, flat)
        assert relative(ours[mask], theirs[mask]) < 5e-6, part
        for row, site in enumerate(sites):
            if site is None:
                np.testing.assert_array_equal(ours[row], unedited[row])
            else:
                assert np.abs(ours[row] - plain[row])[mask[row]].max() > 1e-2, site
    assert forward._cache_size() == 1


def test_an_edit_stays_within_its_mask(both):
    params, oracle = both
    images = (2, 1, 3)
    tokens, mask, pixels, flat = batch(images)
    rng = np.random.default_rng(3)
    patches = CFG.vision.patches
    masks = {
        "vision": rng.random((3, 3, 1 + patches)) < 0.4,
        "projector": rng.random((3, 3, patches)) < 0.4,
        "language": rng.random(mask.shape) < 0.4,
    }
    sites = tuple(Site.parse(name, CFG) for name in ("vision.1.resid_mid", "projector.2", "language.2.resid_mid"))
    edits = edits_at(sites, 5, masks)
    ours = np.asarray(forward(params, CFG, tokens, mask, pixels, edits=edits).logits)
    with ExitStack() as stack:
        hook_edits(stack, oracle, sites, edits, images, mask)
        theirs = oracle.forward(tokens, mask, flat)
    assert relative(ours[mask], theirs[mask]) < 5e-6


def test_generation_under_edits_of_all_towers_equals_pytorch_hooks(both):
    params, oracle = both
    images = (1, 2, 1, 1)
    tokens, mask, pixels, flat = batch(images)
    names = ("language.1.resid_post", "vision.0.resid_post", "projector.1")
    sites = (*(Site.parse(name, CFG) for name in names), None)
    edits = edits_at(sites, 7)
    ours, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=24, eos_id=-1, edits=edits, edited="generated")
    delta = np.asarray(edits["language"].strength[0] * edits["language"].direction[0])

    def steer(x):
        # The prompt's last position is the first that produces a token; with a cache the later ones come alone.
        x[0, -1] += x.new_tensor(delta)

    with ExitStack() as stack:
        hook_edits(stack, oracle, (None, *sites[1:]), edits, images, mask)  # of images, wherever the padding is
        stack.callback(torch_sites.attach(names[0], steer, *oracle.parts).remove)
        np.testing.assert_array_equal(ours, oracle.greedy(tokens, mask, flat, 24))
    plain, _ = generate(params, CFG, tokens, mask, pixels, max_new_tokens=24, eos_id=-1)
    changed = (np.asarray(ours) != np.asarray(plain)).any(axis=1)
    np.testing.assert_array_equal(changed, [True, True, True, False])


def test_generation_under_an_edit_asks_which_tokens(both):
    edits = edits_at((Site.parse("language.embed", CFG),), 7)["language"]
    tokens, mask, pixels, _ = batch((1,))
    with pytest.raises(ValueError, match="edited='prompt', 'generated' or 'both'"):
        generate(both[0], CFG, tokens, mask, pixels, max_new_tokens=2, eos_id=-1, edits=edits)


def test_a_function_edits_as_a_record_does(both):
    tokens, mask, pixels, _ = batch((2, 1))
    sites = tuple(Site.parse(name, CFG) for name in ("vision.output", "projector.1", "language.2.resid_mid"))
    for site in sites:
        edits = edits_at((site, site), 13)[site.tower]
        delta = (edits.strength[:, None] * edits.direction)[:, None]  # [batch, 1, d]

        def add(x, code, site=site, delta=delta):
            return jnp.where(code == site.code, x + jnp.repeat(delta, len(x) // len(delta), axis=0), x)

        @jax.jit
        def edited(params, add=add, tower=site.tower):
            return maira2.forward(params, CFG, tokens, mask, pixels, edits={tower: add}).logits

        ours = np.asarray(edited(both[0]))
        theirs = np.asarray(forward(both[0], CFG, tokens, mask, pixels, edits={site.tower: edits}).logits)
        assert relative(ours[mask], theirs[mask]) < 1e-6, site


def test_sites_are_numbered_in_the_order_of_a_pass():
    for tower in TOWERS:
        codes = [site.code for site in all_sites(CFG) if site.tower == tower]
        assert codes == list(range(len(codes)))
    mid, post = (Site.parse(f"language.3.{point}", CFG).code for point in ("resid_mid", "resid_post"))
    assert (mid, post) == (Site.mid(3), Site.post(3)) == (Site.shifted(Site.mid(0), 3), Site.shifted(Site.post(0), 3))
    assert [Site.whole_blocks(code) for code in (Site.embedding(), mid, post)] == [0, 3, 4]
    assert Site.last(CFG) == Site.parse("language.3.resid_post", CFG)


@pytest.mark.parametrize("name", ["language.4.resid_mid", "language.output", "vision.3.resid_post", "projector.4", "x"])
def test_a_site_that_is_not_there_is_refused(name):
    ranges = "with i from 0 to 3, the same in vision with i from 0 to 2, .* projector.<i> with i from 0 to 3$"
    with pytest.raises(UserError, match=rf"there is no site '{name}': choose .* {ranges}"):
        Site.parse(name, CFG)


@pytest.fixture(scope="module")
def everything(both):
    tokens, mask, pixels, _ = batch((1, 1))
    return forward(both[0], CFG, tokens, mask, pixels, read=all_sites(CFG)).sites


@pytest.mark.parametrize(
    "name",
    ["vision.1.resid_mid", "vision.output", "projector.1", "language.embed", "language.3.resid_mid",
     "language.2.resid_post"],
)  # fmt: skip
def test_a_site_alone_equals_the_same_among_all_and_is_read_after_its_edit(both, everything, name):
    tokens, mask, pixels, _ = batch((1, 1))
    site = Site.parse(name, CFG)
    edits = edits_at((site, None), 11)
    nothing = {tower: edit.replace(strength=jnp.zeros(2)) for tower, edit in edits.items()}
    plain, edited = (
        forward(both[0], CFG, tokens, mask, pixels, read=(site,), edits=some, logits=False) for some in (nothing, edits)
    )
    assert plain.logits is None and set(plain.sites) == {name}
    before, after = np.asarray(plain.sites[name]), np.asarray(edited.sites[name])
    assert relative(before, np.asarray(everything[name])) < 1e-6
    delta = np.asarray(edits[site.tower].strength[0] * edits[site.tower].direction[0])
    kept = mask[0] if site.tower == "language" else slice(None)
    np.testing.assert_allclose(after[0][kept], before[0][kept] + delta, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(after[1], before[1])


# A deep model of narrow blocks, for what does not depend on the weights.
DEEP = dataclasses.replace(
    CFG, text=dataclasses.replace(CFG.text, num_hidden_layers=32, hidden_size=64, intermediate_size=172, vocab_size=300)
)


def compiled(cfg, read: tuple[str, ...], logits: bool = False, images: int | None = None):
    """The program of one pass over [2, 128] tokens, without weights."""
    params = jax.eval_shape(lambda: maira2.init(cfg, jax.random.key(0)))
    size = cfg.vision.image_size
    pixels = None if images is None else jax.ShapeDtypeStruct((2, images, size, size, 3), jnp.float32)
    call = functools.partial(maira2.forward, cfg=cfg, read=tuple(Site.parse(name, cfg) for name in read), logits=logits)
    tokens, mask = jax.ShapeDtypeStruct((2, 128), jnp.int32), jax.ShapeDtypeStruct((2, 128), bool)
    return jax.jit(call).lower(params, tokens=tokens, mask=mask, pixels=pixels).compile()


def flops(program) -> float:
    return program.cost_analysis()["flops"]


def test_reading_layer_15_costs_half_a_forward_pass(monkeypatch):
    # Cost analysis counts a loop's body once, so the loop over the layers is unrolled for the count.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    mid, post = (flops(compiled(DEEP, (f"language.15.{place}",))) for place in ("resid_mid", "resid_post"))
    whole = flops(compiled(DEEP, (), logits=True))
    text, positions = DEEP.text, 128
    d, heads, width = text.hidden_size, text.num_attention_heads * text.head_dim, text.intermediate_size
    head = 2 * 2 * positions * d * text.vocab_size
    block = (whole - head) / 32
    assert post == pytest.approx(16 * block, rel=0.01)
    assert 0.45 < post / whole < 0.5
    # Layer 15's MLP is not computed for what is before it.
    mlp = 3 * d * width / (4 * d * heads + 3 * d * width + 2 * positions * heads)
    assert mid == pytest.approx((16 - mlp) * block, rel=0.01)


def test_reading_keeps_only_what_was_asked():
    stream = 2 * 128 * 64 * 4  # bytes of one site
    depth = 32
    one = compiled(DEEP, ("language.15.resid_post",)).memory_analysis()
    three = compiled(DEEP, tuple(f"language.{i}.resid_post" for i in (3, 9, 15))).memory_analysis()
    last = compiled(DEEP, (f"language.{depth - 1}.resid_post",)).memory_analysis()
    assert one.output_size_in_bytes < stream + 256
    assert three.output_size_in_bytes < 3 * stream + 256
    # On the way two sites and what nobody asked for have a place; going deeper takes no more memory.
    assert three.temp_size_in_bytes - one.temp_size_in_bytes < 4 * stream
    assert last.temp_size_in_bytes < one.temp_size_in_bytes + stream
    layer = 4 * (4 * 64 * 48 + 3 * 64 * 172)
    assert last.temp_size_in_bytes < 0.5 * depth * layer, "the stacked weights are copied"


def test_programs_do_not_grow_with_depth():
    def length(layers: int) -> int:
        cfg = dataclasses.replace(
            CFG,
            vision=dataclasses.replace(CFG.vision, num_hidden_layers=layers),
            text=dataclasses.replace(CFG.text, num_hidden_layers=layers),
        )
        return len(compiled(cfg, ("vision.1.resid_post", "language.1.resid_mid"), logits=True, images=1).as_text())

    assert length(32) == pytest.approx(length(4), rel=0.02)


def test_a_pass_that_cannot_give_what_is_asked_is_refused(both):
    params, _ = both
    tokens, mask, pixels, _ = batch((1, 1))
    with pytest.raises(ValueError, match="must read a site"):
        maira2.forward(params, CFG, tokens, mask, pixels, logits=False)
    with pytest.raises(ValueError, match="no pixels"):
        maira2.forward(params, CFG, tokens, mask, None, read=(Site.parse("projector.0", CFG),))
    with pytest.raises(ValueError, match="visoin"):
        edits = {"visoin": edits_at((None, None), 0)["vision"]}
        maira2.forward(params, CFG, tokens, mask, pixels, edits=edits)
