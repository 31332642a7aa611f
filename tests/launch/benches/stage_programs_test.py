"""What the programs of the stages hold and take, before anything is compiled."""

from launch.benches.stage_programs import PROGRAMS
from tests.helpers.tiny_setting import setting


def test_a_harvest_holds_only_the_layers_that_its_site_needs():
    on = setting()
    assert 0 < PROGRAMS["harvest"].constant_bytes(on) < PROGRAMS["generate"].constant_bytes(on)
    assert not PROGRAMS["train"].constant_bytes(on)
