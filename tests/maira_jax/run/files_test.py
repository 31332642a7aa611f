"""Digests of files and folders."""

import pytest

from maira_jax.errors import UserError
from maira_jax.run import files


def test_a_digest_is_of_names_and_contents(tmp_path):
    folder = tmp_path / "sae"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a")
    (folder / "inner" / "b.bin").write_bytes(b"b")
    assert files.content_digest(folder / "a.bin") == files.sha256(folder / "a.bin")
    before = files.content_digest(folder)
    moved = folder.rename(tmp_path / "moved")
    assert files.content_digest(moved) == before
    (moved / "a.bin").rename(moved / "c.bin")
    assert files.content_digest(moved) != before
    with pytest.raises(UserError, match="sae does not exist: check the path"):
        files.content_digest(folder)
