"""The line that a command ends with."""

from launch import _main


def test_it_has_the_peak_of_device_memory_where_devices_tell_it(monkeypatch, capsys):
    result = {"steps": 1200, "fvu": 0.25, "parts": [1], "digest": "0" * 64}
    _main.report("train", result)
    monkeypatch.setattr(_main.sharding, "peak_memory", lambda: 3 * 2**29)
    _main.report("train", result)
    _main.report("export", {"a/x": "0" * 64, "a/y": "1" * 64})
    assert capsys.readouterr().out.splitlines() == [
        "train: steps 1,200, fvu 0.25",
        "train: steps 1,200, fvu 0.25, peak device memory 1.5 GiB",
        "export: files 2, peak device memory 1.5 GiB",
    ]
