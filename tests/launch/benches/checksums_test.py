"""What the two sides do, with stages that are small."""

import json
from pathlib import Path

import pytest

from configs import phantom
from launch.benches import checksums as bench
from launch.benches import child_process
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from sae.activations import chunk_files

trusted = []  # whether a chunk with a wrong checksum was


def _stage(name, inputs):
    def run(config, workdir):
        assert config.studies.source == "phantom"
        with Stage(workdir, name, {}, inputs, config=config) as stage:
            (stage.dir / "table.txt").write_text("rows")
            trusted.append(chunk_files._matches(b"rows", b"\0\0\0\0"))
            stage.finish({})

    return run


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A run with a model; what the stages of each side have left there before it is removed."""
    monkeypatch.setattr(bench, "_STAGES", {"one": _stage("one", ("model",)), "two": _stage("two", ("model", "one"))})
    for module, name, _ in bench._HASHING:
        monkeypatch.setattr(module, name, getattr(module, name))  # the benchmark replaces them, which is undone
    with Stage(tmp_path, "model", {}, config=phantom.get_config()) as stage:
        (stage.dir / "weights").write_text("1")
        stage.finish({})
    return tmp_path


def test_one_side_hashes_and_the_other_does_not(kept, capsys, monkeypatch):
    left = []
    unpatched = [(module, name, getattr(module, name)) for module, name, _ in bench._HASHING]

    def in_this_process(benchmark, options, *child):
        for module, name, function in unpatched:
            setattr(module, name, function)
        bench.main([*options, "--child", *child])
        side, stage, workdir = child
        manifest = files.read_json(Path(workdir, stage, "manifest.json"))
        left.append((side, stage, list(manifest["files"]), trusted.pop()))
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(child_process, "measured", in_this_process)
    bench.main([f"--run={kept}", "--turns=2"])
    sides = [("with", ["table.txt"], False), ("without", [], True)]
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
