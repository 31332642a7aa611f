"""The command's own decisions; what it compiles is tested in tests/compiled."""

import pytest

from launch.benches import absent_devices, fits
from maira_jax.errors import UserError


@pytest.mark.parametrize("batch", (1, 4, 8, 16))
@pytest.mark.parametrize("step", (1, 4))
@pytest.mark.parametrize("fixed, bend", ((10, 0.0), (10, 0.2), (95, 0.0)))
def test_the_largest_batch_is_found_in_a_few_compilations(batch, step, fixed, bend):
    sizes = []

    def peak(size: int) -> float:
        sizes.append(size)
        return int(1000 * (fixed + size + bend * size**0.5))

    batch *= step
    found = fits.largest_batch(peak, 100_000, batch, step, 64, peak(batch))
    assert all(size % step == 0 for size in sizes) and len(sizes) <= 6
    assert found == max((size for size in range(step, 65, step) if peak(size) <= 100_000), default=0)


def test_nothing_fits_where_the_weights_do_not():
    assert fits.largest_batch(lambda size: 200 + size, 100, 8, 1, 64, 208) == 0


@pytest.mark.parametrize("name", ("tpu", "v5e", "v5e:2", "v5p:2x2", "x100", "h100:2x2"))
def test_unknown_devices_are_refused(name):
    with pytest.raises(UserError, match=f"--device={name} is not known: give one of h100"):
        absent_devices.facts(name)


def test_a_missing_compiler_is_told_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(absent_devices, "folder", lambda compiler: tmp_path / compiler)
    monkeypatch.setattr(absent_devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install --target {tmp_path}/tpu 'libtpu==0\.0\.42\.\*'$"):
        absent_devices.devices("v5e:2x2")
    with pytest.raises(UserError, match="pip install .*--no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2$"):
        absent_devices.devices("8xh100")


@pytest.mark.parametrize(
    "options, sentence",
    (
        (["--stages=sleep"], "--stages=sleep is not a program"),
        (["--mesh=4"], "--mesh=4 is not two numbers"),
        (["--config=nowhere.py"], "--config=nowhere.py is not a Python file"),
    ),
)
def test_flags_are_refused_in_a_sentence(monkeypatch, options, sentence):
    monkeypatch.setattr(absent_devices, "devices", lambda name: [])
    with pytest.raises(UserError, match=sentence):
        fits.main(["--device=h100", *options])
