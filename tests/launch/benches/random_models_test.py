import jax

from launch.benches.random_models import config_of, draw, draw_unstacked
from maira_jax.model import maira2, sharding
from maira_jax.model.config import published
from maira_jax.model.int8 import Int8Kernel
from maira_jax.model.sites import Site


def test_the_size_of_maira2_is_the_published_one() -> None:
    assert config_of("maira2", published().image_token_id) == published()


def test_parameters_have_the_shapes_of_loaded_ones() -> None:
    cfg = config_of("phantom")
    site = Site.parse("language.2.resid_post", cfg)
    expected = sharding.of_params(cfg, sharding.abstract_mesh(1, 1), "bfloat16", site)
    drawn = draw(cfg, "bfloat16", site)
    assert len(jax.tree.leaves(drawn)) == len(expected)
    for path, leaf in expected.items():
        found = drawn
        for name in path:
            found = found[name]
        assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)  # type: ignore[attr-defined]


def test_unstacked_parameters_differ_from_layer_to_layer() -> None:
    cfg = config_of("phantom")
    shapes = jax.eval_shape(lambda: maira2.unstacked(draw(cfg, "bfloat16", weights="int8")))
    drawn = draw_unstacked(cfg, "bfloat16", "int8")
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), drawn
    )
    first, second = (layer["qkv"]["kernel"] for layer in drawn["language"]["layers"][:2])
    assert isinstance(first, Int8Kernel)
    assert (first.values != second.values).mean() > 0.9
