"""The log of a training run: what an earlier attempt left."""

import pytest

from maira_jax.errors import UserError
from sae.training.log import TrainingLog


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}'])
def test_a_damaged_log_is_refused(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 0}}\n{line}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2, is damaged .*: delete"):
        TrainingLog(tmp_path, 2)
    assert log.read_text() == f'{{"step": 0}}\n{line}\n'
