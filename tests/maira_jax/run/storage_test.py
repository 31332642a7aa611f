"""A folder that stands for one in a bucket, against servers of S3's and of Google's protocol on this machine."""

import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.run import files, lock, processes, storage
from maira_jax.run.lock import FolderLock
from maira_jax.run.stages.stage import Stage
from tests.helpers import bucket as buckets
from tests.helpers import google_bucket


@pytest.fixture(scope="module", params=["s3", pytest.param("gs", marks=pytest.mark.drill)])
def server(request, tmp_path_factory):
    served = buckets.served() if request.param == "s3" else google_bucket.served(tmp_path_factory.mktemp("gs"))
    with served as found:
        yield found


@pytest.fixture
def attach(server, tmp_path, monkeypatch):
    """Attaches the scratch of a host to `run` of the bucket: attach("host")."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "_attached", [])
    server.requests.clear()
    address = f"{server.scheme}://{buckets.NAME}/{tmp_path.name}/run"
    return lambda host, query="": storage.attach(address + query, tmp_path / host, 0)


@pytest.fixture
def stored(server, tmp_path):
    """What `run` of the bucket holds now."""
    return lambda: server.files(f"{tmp_path.name}/run")


def _work(workdir, **section):
    with Stage(workdir, "sae", section) as stage:
        if not stage.finished:
            files.write_json(stage.dir / "part.json", {"n": 1})
            (stage.dir / "log.jsonl").write_text("{}\n")
            stage.finish({"n": 1})
    return stage


def test_what_is_written_as_a_whole_is_in_the_bucket_at_once_and_on_another_host_when_it_is_fetched(attach, stored):
    first, second = attach("first"), attach("second")
    files.write_json(first / "sae" / "part.json", {"n": 1})
    assert {name: json.loads(text) for name, text in stored().items()} == {"sae/part.json": {"n": 1}}
    (second / "sae").mkdir()
    (second / "sae" / "of an earlier command.json").touch()
    storage.fetch(second / "sae")
    assert os.listdir(second / "sae") == ["part.json"]
    assert files.read_json(second / "sae" / "part.json") == {"n": 1}
    files.remove(second / "sae")
    storage.fetch(first / "sae")
    assert not stored() and not os.listdir(first / "sae")


def test_folders_in_folders_come_too_and_what_is_gone_is_removed(attach, stored):
    first, second = attach("first"), attach("second")
    for name in ("model/manifest.json", "steer/one/part.json", "steer/.hidden/part.json", "model/params/a.json"):
        files.write_json(first / name, {})
    storage.send(first / "model" / "params")
    storage.fetch(second, ("manifest.json", "part.json"))
    found = {str(path.relative_to(second)) for path in second.rglob("*") if path.is_file()}
    assert found == {"model/manifest.json", "steer/one/part.json"}
    shutil.rmtree(first / "steer")
    storage.prune(first)
    assert set(stored()) == {"model/manifest.json", "model/params/a.json"}


def test_only_what_has_changed_is_sent_and_fetched(attach, stored, server):
    first, second = attach("first"), attach("second")
    for name in ("one", "two"):
        (first / name).write_text("1")
    storage.send(first)
    storage.fetch(second)
    server.requests.clear()
    (first / "two").write_text("other")
    for _ in range(2):
        storage.send(first)
    assert [key[-3:] for key in server.written()] == ["two"]
    server.requests.clear()
    for _ in range(2):
        storage.fetch(second)
    storage.send(second)  # a copy of the bucket's is not sent back
    assert [key[-7:] for key in server.requests if key.startswith(("GET", "PUT")) and key[-3:] in ("one", "two")] == [
        "run/two"
    ]
    assert (second / "two").read_text() == "other"
    assert stored() == {"one": b"1", "two": b"other"}


def test_a_copy_is_known_to_be_the_buckets_by_a_later_command(attach, server):
    (attach("first") / "one").write_text("1")
    storage.send(storage._attached[0].local)
    storage._attached.clear()
    workdir = attach("first")
    server.requests.clear()
    storage.fetch(workdir)
    assert not [key for key in server.requests if key.startswith("GET") and key.endswith("one")]


def test_temporaries_and_large_parts_are_not_sent_with_a_folder(attach, stored):
    workdir = attach("host")
    (workdir / "values.zarr").mkdir()
    for name in (".part.json.0.tmp", ".sae.lock", "values.zarr/zarr.json", "part"):
        (workdir / name).touch()
    with pytest.raises(ZeroDivisionError), files.atomic_path(workdir / "never.json") as path:
        path.touch()
        storage.send(workdir)
        raise ZeroDivisionError
    assert stored().keys() == {"part"}
    storage.send(workdir / "values.zarr")
    assert stored().keys() == {"part", "values.zarr/zarr.json"}


def test_a_file_that_grows_while_it_is_sent_is_sent_again(attach, stored, monkeypatch):
    workdir = attach("host")
    path, copy = workdir / "log.jsonl", shutil.copyfileobj
    path.write_text("one\n")

    def growing(source, target, size):
        copy(source, target, size)
        path.write_text("one\ntwo\n")

    monkeypatch.setattr(shutil, "copyfileobj", growing)
    storage.send(workdir)
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    storage.send(workdir)
    assert stored() == {"log.jsonl": b"one\ntwo\n"}


def test_the_manifest_is_written_last_and_a_later_command_finds_it_on_any_host(attach, stored, server, capsys):
    _work(attach("first"), k=1)
    written = [key.partition("/run/")[2] for key in server.written()]
    assert written[-2:] == ["sae/log.jsonl", "sae/manifest.json"]
    assert set(stored()) == {"sae/part.json", "sae/log.jsonl", "sae/manifest.json"}
    server.requests.clear()
    stage = _work(attach("second"), k=1)
    assert stage.finished and not server.written()
    assert f"sae: already finished in {server.scheme}://bucket/" in capsys.readouterr().err
    assert (stage.dir / "log.jsonl").read_text() == "{}\n"
    with pytest.raises(UserError, match="of another configuration, which differs in section.k") as refused:
        _work(attach("third"), k=2)
    assert f"{server.scheme}://{buckets.NAME}/" in storage.named(str(refused.value))
    with Stage(attach("fourth"), "export", {}, inputs=("sae",)) as stage:
        assert (stage.workdir / "sae" / "log.jsonl").is_file()


def test_an_attempt_that_was_cut_off_is_resumed_on_another_host(attach):
    with pytest.raises(ZeroDivisionError), Stage(attach("first"), "sae", {}) as stage:
        files.write_json(stage.dir / "part.json", {"n": 1})
        raise ZeroDivisionError
    with Stage(attach("second"), "sae", {}) as stage:
        assert files.read_json(stage.dir / "part.json") == {"n": 1}


def test_credentials_are_nowhere(attach, stored, server, tmp_path):
    if server.scheme == "s3":
        workdir = attach("host", f"?endpoint_override={server.endpoint[7:]}&scheme=http&region=us-east-1")
        assert storage.kvstore(workdir / "x")["endpoint"] == server.endpoint
    else:
        workdir = attach("host")
    _work(workdir, k=1)
    text = b"".join(stored().values()) + "".join(map(str, tmp_path.rglob("*"))).encode()
    for secret in (server.secret, "endpoint_override", server.endpoint):
        assert secret.encode() not in text and secret not in storage.named(str(workdir))


@pytest.mark.parametrize(
    "address, sentence",
    [
        ("gcs://bucket/run", "--workdir=gcs://bucket/run is not the address of an object store that is known"),
        ("https://bucket/run?token=hidden", "use gs:// or s3://"),
        ("s3://key:hidden@bucket/run", "--workdir=s3://bucket/run held a name or a key: give credentials by"),
        ("gs:///run", "names no bucket: use gs://BUCKET/PATH"),
        ("gs://bucket/run?endpoint_override=a:1", "named a server, which only s3:// can: set the environment's"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(address, sentence):
    with pytest.raises(UserError) as refused:
        storage.check_address("--workdir", address)
    assert sentence in str(refused.value) and "hidden" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_refused(server, monkeypatch, tmp_path):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "_attached", [])
    said = {"s3": "NO_SUCH_BUCKET", "gs": "NOT_FOUND"}[server.scheme]
    address = f"{server.scheme}://no-bucket/run{'?region=us-east-1' if server.scheme == 's3' else ''}"
    with pytest.raises(UserError, match=rf"no-bucket/run cannot be written \(.*{said}.*check the bucket"):
        files.write_json(storage.attach(address, tmp_path, 0) / "one.json", {})


def test_a_local_folder_is_opened_as_before(tmp_path):
    assert storage.kvstore(tmp_path) == {"driver": "file", "path": f"{tmp_path}/"}
    assert not storage.is_remote(tmp_path) and storage.exists(tmp_path)
    storage.send(tmp_path)
    storage.fetch(tmp_path)


def test_processes_that_write_one_folder_send_their_own_files(attach, stored):
    hosts = [attach("first"), attach("second")]
    (hosts[0] / "log").write_text("of the first")
    storage.send(hosts[0])
    storage.fetch(hosts[1])
    (hosts[0] / "log").write_text("of the first, longer")
    storage.send(hosts[0])
    (hosts[1] / "part").write_text("of the second")
    storage.send(hosts[1])  # not the first one's log, of which it has an old copy
    assert stored() == {"log": b"of the first, longer", "part": b"of the second"}


def test_a_lock_keeps_other_commands_out_of_the_bucket(attach, server):
    ours = FolderLock(attach("first") / "sae")
    ours.acquire()
    with pytest.raises(UserError, match=rf"another command works in .*sae \(process {os.getpid()} on .*\): wait"):
        FolderLock(attach("second") / "sae").acquire()
    ours.release()
    theirs = FolderLock(attach("third") / "sae")
    theirs.acquire()
    theirs.release()


def test_of_two_commands_that_begin_together_one_has_the_lock(attach):
    hosts, held = [attach(str(host)) for host in range(4)], []

    def acquire(host):
        try:
            mine = FolderLock(host / "sae")
            mine.acquire()
            held.append(mine)
        except UserError:
            pass

    threads = [threading.Thread(target=acquire, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].release()


def test_a_dead_commands_lock_in_the_bucket_is_taken_over(attach, monkeypatch):
    monkeypatch.setattr(lock, "_EXPIRES", 0.4)
    workdir = attach("host")
    for owner in ({"process": 2**22 + 1}, {"namespace": "elsewhere"}):
        dead = lock._LockObject(workdir / ".sae.lock")
        assert dead.create(lock._this_process() | owner)
        ours = FolderLock(workdir / "sae")
        ours.acquire()
        assert lock._LockObject(workdir / ".sae.lock").read()["process"] == os.getpid()
        dead.show_life()  # has no effect any more
        assert lock._LockObject(workdir / ".sae.lock").read() == ours._owner
        ours.release()


def test_a_lock_in_the_bucket_shows_signs_of_life(attach, monkeypatch):
    monkeypatch.setattr(lock, "_REFRESH", 0.02)
    workdir = attach("host")
    ours, mark = FolderLock(workdir / "sae"), lock._LockObject(workdir / ".sae.lock")
    ours.acquire()
    before = mark.changed()
    while mark.changed() == before:
        time.sleep(0.01)
    ours.release()
    assert mark.read() is None


def test_arrays_are_written_past_the_scratch(attach, stored):
    import tensorstore as ts

    workdir = attach("host")
    spec = {"driver": "zarr3", "kvstore": storage.kvstore(workdir / "sae" / "values.zarr")}
    array = ts.open(spec, create=True, dtype="float32", shape=[4]).result()
    array.write(np.arange(4, dtype=np.float32)).result()
    assert "sae/values.zarr/zarr.json" in stored() and not (workdir / "sae").exists()
    assert storage.exists(workdir / "sae" / "values.zarr")
    storage.fetch(workdir / "sae")
    assert not (workdir / "sae" / "values.zarr").exists()
    files.remove(workdir / "sae")
    assert not stored()


def test_every_process_has_a_folder_of_its_own(attach, tmp_path, server):
    assert processes.count() == 1
    bucket = f"{server.scheme}://{buckets.NAME}"
    one = storage.attach(f"{bucket}/a", tmp_path, 0)
    assert storage.attach(f"{bucket}/a/", tmp_path, 1).parent == one.parent
    assert storage.attach(f"{bucket}/b", tmp_path, 0).parent != one.parent
    assert one.stat().st_mode & 0o077 == 0
