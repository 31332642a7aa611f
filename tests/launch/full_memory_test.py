"""A device without memory ends a command with a sentence."""

import jax
import pytest

from launch import _main


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ending(monkeypatch):
    def fail(sentence, code):
        raise Ended(sentence, code)

    monkeypatch.setattr(_main, "_fail", fail)
    return _main._ending("python -m launch.steer", ("seed", "studies", "steer"))


def test_it_names_the_sizes_that_can_be_lowered(ending):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 40.38GiB with allocator GPU_0_bfc on device 0."
    with pytest.raises(Ended) as ended, ending:
        raise jax.errors.JaxRuntimeError(f"{said} [tf-allocator-allocation-error=''] [executable_name='jit_generate']")
    assert ended.value.args == (
        f"a device's memory is full ({said}): lower --config.steer.batch_studies or --config.steer.batch_rows, or use "
        "more devices, and run python -m launch.steer again",
        _main.BAD_INPUT,
    )


def test_other_errors_of_the_runtime_keep_their_traceback(ending):
    with pytest.raises(jax.errors.JaxRuntimeError), ending:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
