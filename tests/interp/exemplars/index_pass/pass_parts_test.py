import numpy as np
import pytest

from interp.exemplars.index_pass.pass_parts import PassParts
from maira_jax.errors import UserError


def test_parts_are_kept_in_order_and_those_of_another_pass_are_refused(tmp_path):
    parts = PassParts(tmp_path / "parts", "one")
    assert parts.saved() == []
    parts.save(range(20, 30), {"train/n": np.arange(2)})
    parts.save(range(0, 10), {"train/n": np.arange(3)})
    parts.save(range(0, 15), {"train/n": np.arange(4)})
    assert parts.saved() == [range(0, 15), range(20, 30)]
    assert {name: value.tolist() for name, value in parts.load(0).items()} == {"train/n": [0, 1, 2, 3]}
    other = PassParts(tmp_path / "parts", "other")
    for read in (other.saved, lambda: other.load(20)):
        with pytest.raises(UserError, match="parts holds a pass over other contexts .*: delete"):
            read()
