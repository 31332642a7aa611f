"""Files that are corrupt are refused as they are read."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.run import files
from tests.helpers.random_checkpoint import model_section, read_all, write_sums

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


def header_length(data: np.ndarray) -> int:
    return 8 + int(data[:8].view("<u8")[0])


def random_bytes(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 % of the bytes, anywhere behind the header."""
    start = header_length(data)
    where = rng.choice(np.arange(start, len(data)), len(data) // 50, replace=False)
    data[where] = rng.integers(0, 256, len(where))
    return data


def header_bytes(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2 % of the header."""
    where = rng.choice(header_length(data), header_length(data) // 50, replace=False)
    data[where] = rng.integers(0, 256, len(where))
    return data


def cut(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return data[: len(data) * 98 // 100]


def one_number(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    data[-4:].view("<f4")[:] = np.nan
    return data


@pytest.mark.parametrize("corrupt", [random_bytes, header_bytes, cut, one_number])
@pytest.mark.parametrize("number", [0, 5])
def test_corruption_is_found(copy, corrupt, number):
    path = sorted(copy.glob("*.safetensors"))[number]
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    path.write_bytes(corrupt(data, np.random.default_rng(number)).tobytes())
    with pytest.raises(UserError, match=f"{path.name} is (truncated or )?damaged"):
        read_all(copy)


def test_a_copy_with_2_percent_corrupted_is_refused(copy, tmp_path):
    for path in copy.glob("*.safetensors"):
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        path.write_bytes(random_bytes(data, np.random.default_rng(0)).tobytes())
    with pytest.raises(UserError, match="is damaged: .* download the file again"):
        convert.run(model_section(copy, "bfloat16"), tmp_path, tmp_path / "flax")
    assert not (tmp_path / "flax").exists()


def test_a_kernel_of_zeros_is_taken_where_its_files_digest_is_known(copy):
    path = sorted(copy.glob("*.safetensors"))[2]
    tensors = load_file(path)
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name][:] = 0
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds only zeros"):
        read_all(copy)
    write_sums(copy, files.sha256(path), path.name)
    assert not read_all(copy)[name].any()
