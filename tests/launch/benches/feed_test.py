"""The benchmark at its smallest size."""

import json

from launch.benches import child_process, feed

_OPTIONS = ["--tokens=2000", "--d_model=8", "--batch_size=64", "--turns=1", "--described=1000000", "--processes=2"]


def test_it_measures_each_program_and_describes_a_larger_store(capsys, monkeypatch):
    def in_this_process(benchmark, options, side, folder):
        feed.main([*options, "--child", side, folder])
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(child_process, "measured", in_this_process)
    feed.main(_OPTIONS)
    result = json.loads(capsys.readouterr().out)
    assert set(result["cpu_ratio"]) == {"memmap", "dataloader"}
    assert all(result[side]["tokens_per_second"] > 0 for side in ("ours", "memmap", "dataloader"))
    assert 0 < result["described"]["held_mb"] < result["described"]["peak_mb"] < 2
