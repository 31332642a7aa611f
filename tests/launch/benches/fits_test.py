"""The command's own decisions; what it compiles is tested in tests/compiled."""

import jax
import pytest

from launch.benches import absent_devices, fits
from maira_jax.errors import UserError


@pytest.mark.parametrize("batch", (1, 4, 8, 16))
@pytest.mark.parametrize("step", (1, 4))
@pytest.mark.parametrize("fixed, bend", ((10, 0.0), (10, 0.2), (95, 0.0)))
def test_the_largest_batch_is_found_in_a_few_compilations(batch, step, fixed, bend):
    sizes = []

    def peak(size: int) -> int:
        sizes.append(size)
        return int(1000 * (fixed + size + bend * size**0.5))

    known = {0: 9_000, batch * step: peak(batch * step)}
    found = fits.largest_batch(peak, 100_000, step, 64, known)
    assert all(size % step == 0 for size in sizes) and len(sizes) <= 5
    largest = max((size for size in range(step, 65, step) if peak(size) <= 100_000), default=0)
    assert largest - max(step, largest // 16) < found <= largest


def test_nothing_fits_where_the_weights_do_not():
    assert fits.largest_batch(lambda size: 200 + size, 100, 1, 64, {0: 200, 8: 208}) == 0


@pytest.mark.parametrize("name", ("tpu", "v5e", "v5e:2", "v5p:2x2", "x100", "h100:2x2"))
def test_unknown_devices_are_refused(name):
    with pytest.raises(UserError, match=f"--device={name} is not known: give one of h100"):
        absent_devices.facts(name)


def test_a_missing_compiler_is_told_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(absent_devices, "folder", lambda compiler: tmp_path / compiler)
    monkeypatch.setattr(absent_devices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install --no-deps --target {tmp_path}/tpu 'libtpu==0\.0\.\d+\.\*'$"):
        absent_devices.devices("v5e:2x2")
    with pytest.raises(
        UserError, match=rf"/gpu jax-cuda13-plugin=={jax.__version__} jax-cuda13-pjrt=={jax.__version__}$"
    ):
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
