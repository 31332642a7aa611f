"""Digests from the places where they may be published."""

from pathlib import Path

import pytest

from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.run import files
from tests.helpers.random_checkpoint import flip_lowest_bit, read_all, write_sums

FLOAT32, BFLOAT16 = convert.DTYPES["float32"], convert.DTYPES["bfloat16"]


def record(copy: Path, digest: str, name: str) -> Path:
    folder = copy / ".cache" / "huggingface" / "download"
    folder.mkdir(parents=True)
    (folder / f"{name}.metadata").write_text(f"{'0' * 40}\n{digest}\n1700000000.0\n")
    return copy


def cache(copy: Path, digest: str, name: str) -> Path:
    blobs = copy.parent / "blobs"
    blobs.mkdir()
    (copy / name).rename(blobs / digest)
    (copy / name).symlink_to(blobs / digest)
    return copy


@pytest.mark.parametrize("publish", [write_sums, record, cache])
def test_one_wrong_bit_is_found_where_a_digest_is_known(copy, publish):
    path = sorted(copy.glob("*.safetensors"))[2]
    read_all(publish(copy, files.sha256(path), path.name))
    flip_lowest_bit(path)
    with pytest.raises(UserError, match=f"{path.name} is damaged or of another version"):
        read_all(copy)
