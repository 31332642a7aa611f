"""What the two sides do, with stages that are small."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from configs import phantom
from launch.benches import checksums as bench
from launch.benches import child_process
from maira_jax.run import files
from maira_jax.run.stages import checksums
from maira_jax.run.stages.stage import Stage

_SPEC = {
    "driver": "zarr3",
    "create": True,
    "metadata": {
        "shape": [4],
        "data_type": "int8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    },
}


def _stage(name, inputs):
    def run(config, workdir):
        assert config.studies.source == "phantom"
        with Stage(workdir, name, {}, inputs, config=config) as stage:
            kvstore = {"kvstore": {"driver": "file", "path": f"{stage.dir}/values.zarr/"}}
            ts.open(_SPEC | kvstore).result()[...] = np.arange(4, dtype=np.int8)
            (stage.dir / "table.txt").write_text("rows")
            stage.finish({})

    return run


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A run with a model; what the stages of each side have left there before it is removed."""
    monkeypatch.setattr(bench, "_STAGES", {"one": _stage("one", ("model",)), "two": _stage("two", ("model", "one"))})
    for module, name in ((ts, "open"), *bench._HASHING):
        monkeypatch.setattr(module, name, getattr(module, name))  # the benchmark replaces them, which is undone
    with Stage(tmp_path, "model", {}, config=phantom.get_config()) as stage:
        (stage.dir / "weights").write_text("1")
        stage.finish({})
    return tmp_path


def test_one_side_hashes_and_the_other_does_not(kept, capsys, monkeypatch):
    left = []
    unpatched = [(module, name, getattr(module, name)) for module, name in ((ts, "open"), *bench._HASHING)]

    def in_this_process(benchmark, options, *child):
        for module, name, function in unpatched:
            setattr(module, name, function)
        bench.main([*options, "--child", *child])
        side, stage, workdir = child
        manifest = files.read_json(Path(workdir, stage, "manifest.json"))
        codecs = files.read_json(Path(workdir, stage, "values.zarr", "zarr.json"))["codecs"]
        left.append((side, stage, len(manifest["files"]), [codec["name"] for codec in codecs]))
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(child_process, "measured", in_this_process)
    bench.main([f"--run={kept}", "--turns=2"])
    assert checksums.of_folder is not unpatched[1][2], "the benchmark has replaced it"
    sides = [("with", 3, ["bytes", "crc32c"]), ("without", 0, ["bytes"])]
    expected = [(side, stage, *kind) for side, *kind in (*sides, *sides[::-1]) for stage in ("one", "two")]
    assert left == expected
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in lines] == ["one", "two"]
    for line in lines:
        assert 0 < line["hashing"] < line["with"] and len(line["turns"]["without"]) == 2
        assert line["share"] == pytest.approx(line["with"] / line["without"] - 1, abs=1e-3)


def test_stages_that_others_read_are_run_before_them(kept, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(
        child_process,
        "measured",
        lambda benchmark, options, *child: ran.append(child[1]) or {"seconds": 1.0, "hashing": 0.5},
    )
    bench.main([f"--run={kept}", "--turns=1", "--stages", "two"])
    assert ran == ["one", "two"] * 2 and len(capsys.readouterr().out.splitlines()) == 2
    ran.clear()
    bench.main([f"--run={kept}", "--turns=1", "--stages", "one"])
    assert ran == ["one"] * 2
