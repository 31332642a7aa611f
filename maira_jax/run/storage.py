"""Run directories in object stores: a local folder, the scratch of a process, stands for an address in a bucket.

All stages read and write local paths. What is under a folder that `attach` knows is sent to the bucket: a file that
`maira_jax.run.files` has written as a whole at once, anything else when `send` is called, and what another process or
an earlier command wrote comes with `fetch`. The bucket is the truth and the scratch its copy: a command may begin with
an empty one on any host. Without an attached folder, all of this does nothing.

What is read in parts and is large, the activations and the model's parameters, does not come into the scratch:
TensorStore opens it in the bucket (`kvstore`).
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pyarrow import fs

from maira_jax.errors import UserError, first_line

SCHEMES = ("gs", "s3")
# Folders that are not brought into the scratch, and that those who write them send.
_LARGE = frozenset({"values.zarr", "params", "params.unfinished", "checkpoints"})
_TRANSFERS = 16  # files on their way at a time
_PIECE = 1 << 22  # bytes

Version = tuple[int, int]  # bytes, and nanoseconds of the last change


@dataclasses.dataclass(frozen=True)
class _Attached:
    """A local folder and the address that it stands for.

    Attributes:
      local: the folder.
      address: the address as it may be printed, without its query.
      files: the bucket's files.
      root: bucket and path, as `files` takes them.
      driver: TensorStore's key-value store of the address, without its path.
      known: of each local file the version that the bucket has too, as far as this process knows.
    """

    local: Path
    address: str
    files: fs.FileSystem
    root: str
    driver: dict[str, Any]
    known: dict[Path, Version]

    def remote(self, path: Path) -> str:
        """Where a local path lies, as `files` takes it."""
        return "/".join((self.root, *path.relative_to(self.local).parts))

    def path(self, remote: str) -> Path:
        """The local path of what `files` has listed."""
        return self.local / remote.removeprefix(self.root).lstrip("/")


_attached: list[_Attached] = []


def is_address(text: str) -> bool:
    """Whether a text is an address and not the path of a folder."""
    return "://" in text


def check_address(flag: str, text: str) -> None:
    """Refuses an address that no run directory can be at.

    Args:
      flag: the flag that gives it, for the message.
      text: an address, or the path of a folder.

    Raises:
      UserError: it is of another scheme, names no bucket, holds credentials, or names a server for gs://.
    """
    if not is_address(text):
        return
    scheme, _, rest = text.partition("://")
    shown = _without_secrets(text)
    if scheme not in SCHEMES:
        raise UserError(f"{flag}={shown} is not the address of an object store that is known: use gs:// or s3://")
    authority = rest.partition("?")[0].partition("/")[0]
    if "@" in authority:
        raise UserError(f"{flag}={shown} held a name or a key: give credentials by the environment's variables")
    if not authority:
        raise UserError(f"{flag}={shown} names no bucket: use {scheme}://BUCKET/PATH")
    if scheme == "gs" and "endpoint_override" in parse_qs(urlsplit(text).query):
        # TensorStore's driver knows of none, and would ask Google.
        raise UserError(
            f"{flag}={shown} named a server, which only s3:// can: set the environment's variables "
            "CLOUD_STORAGE_EMULATOR_ENDPOINT and TENSORSTORE_GCS_HTTP_URL to it"
        )


def attach(address: str, scratch: Path, process: int) -> Path:
    """Has a local folder stand for an address, until the process ends.

    Args:
      address: gs://BUCKET/PATH or s3://BUCKET/PATH; of the latter a query may give `region`, `scheme` and
        `endpoint_override`. What it does not say, and the credentials, are taken from the environment's variables.
      scratch: the folder in which each address, and of it each process of a run, has a folder of its own.
      process: the number of this process.

    Returns:
      The folder.

    Raises:
      UserError: the address cannot be used, or the folder not be written.
    """
    shown = _without_secrets(address).rstrip("/")
    try:
        found, root = fs.FileSystem.from_uri(_one_request(address))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{shown} cannot be opened ({first_line(error)}): correct the address") from error
    name = f"{root.replace('/', '-')[-40:]}-{hashlib.sha256(shown.encode()).hexdigest()[:12]}"
    local = (scratch.expanduser() / name / str(process)).absolute()
    try:
        local.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it may be of patients
    except OSError as error:
        raise UserError(f"could not write {local} ({error.strerror or error}): choose another --scratch") from error
    _attached.append(_Attached(local, shown, found, root.rstrip("/"), _driver(address, found), {}))
    return local


def peek(address: str, name: str) -> bytes | None:
    """The content of a small file at an address that no folder stands for; None where there is none.

    Args:
      address: as `attach` takes it.
      name: the file's name.

    Raises:
      UserError: the bucket cannot be read.
    """
    shown = _without_secrets(address).rstrip("/")
    try:
        found, root = fs.FileSystem.from_uri(_one_request(address))
        path = f"{root.rstrip('/')}/{name}"
        if found.get_file_info(path).type != fs.FileType.File:
            return None
        with found.open_input_stream(path) as source:
            return source.read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{shown} cannot be read ({first_line(error)}): check the address and the bucket") from error


def default_scratch() -> Path:
    """The folder in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maira-jax" / "scratch"


def _one_request(address: str) -> str:
    """The address, with small files of s3:// written in one request instead of three."""
    if not address.startswith("s3://"):
        return address
    return f"{address}{'&' if '?' in address else '?'}allow_delayed_open=true"


def _driver(address: str, found: fs.FileSystem) -> dict[str, Any]:
    parts = urlsplit(address)
    if parts.scheme == "gs":
        return {"driver": "gcs", "bucket": parts.netloc}
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" in query:
        endpoint = f"{query.get('scheme', 'https')}://{query['endpoint_override']}"
    driver = {"driver": "s3", "bucket": parts.netloc, "aws_region": found.region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else each file in which credentials could be is complained of
        driver["aws_credentials"] = {"type": "environment"}
    return driver | ({"endpoint": endpoint} if endpoint else {})


def _without_secrets(address: str) -> str:
    scheme, _, rest = address.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _of(path: Path) -> _Attached | None:
    path = path.absolute()
    return next((each for each in _attached if path.is_relative_to(each.local)), None)


def named(text: str) -> str:
    """A sentence or a path, with addresses in place of the folders that stand for them."""
    for each in _attached:
        text = text.replace(str(each.local), each.address)
    return text


def kvstore(path: Path) -> dict[str, Any]:
    """TensorStore's key-value store of a folder: in the bucket for one under an attached folder, else on this host."""
    path = path.absolute()
    attached = _of(path)
    if attached is None:
        return {"driver": "file", "path": f"{path}/"}
    key = attached.remote(path).partition("/")[2]
    return attached.driver | {"path": f"{key}/"}


def is_remote(path: Path) -> bool:
    """Whether a path stands for one in a bucket."""
    return _of(path) is not None


def exists(path: Path) -> bool:
    """Whether there is a file or a folder; in the bucket for a path under an attached folder."""
    attached = _of(path)
    if attached is None:
        return path.exists()
    with _sentences(attached, "read"):
        return attached.files.get_file_info(attached.remote(path.absolute())).type != fs.FileType.NotFound


def send(path: Path) -> None:
    """Sends what has changed of a file, or of all files in a folder, to the bucket.

    Temporaries, locks, and large parts of the folder, which those who write them send, are left out.

    Raises:
      UserError: the bucket cannot be written.
    """
    attached, path = _of(path), path.absolute()
    if attached is None:
        return
    found = _files_in(path) if path.is_dir() else [path]
    changed = [each for each in found if attached.known.get(each) != _version(each)]
    with _sentences(attached, "written"):
        _together(lambda each: _upload(attached, each, each), changed)


def send_written(path: Path) -> None:
    """Sends a file or folder that has just been written as a whole, unless it belongs to a large part of a folder.

    Raises:
      UserError: the bucket cannot be written.
    """
    attached = _of(path)
    if attached is not None and not _LARGE & set(path.absolute().relative_to(attached.local).parts):
        send(path)


def send_copy(copy: Path, path: Path) -> None:
    """Sends the file `copy` to the bucket as `path`, whose own content may change meanwhile."""
    attached = _of(path)
    if attached is not None:
        with _sentences(attached, "written"):
            _upload(attached, copy, path.absolute())


def fetch(path: Path, names: Collection[str] = ()) -> None:
    """Makes a file or a folder what it is in the bucket, its large parts apart, if it is not one of them itself.

    Args:
      path: the file or folder.
      names: the names of the only files that are wanted; none: all are.

    Raises:
      UserError: the bucket cannot be read.
    """
    attached, path = _of(path), path.absolute()
    if attached is None:
        return
    with _sentences(attached, "read"):
        listed = _listed(attached, attached.remote(path))
        there = {attached.path(info.path): info for info in listed if not names or info.base_name in names}
        for each in _files_in(path) if path.is_dir() else [path]:
            if each not in there and (not names or each.name in names):
                each.unlink(missing_ok=True)
                attached.known.pop(each, None)
        changed = [info for each, info in there.items() if _version(each) != _remote_version(info)]
        _together(lambda info: _download(attached, info), changed)
        attached.known.update({each: _remote_version(info) for each, info in there.items()})


def forget(path: Path) -> None:
    """Removes a file or a folder, large parts and all, from the bucket, if it is there."""
    attached, path = _of(path), path.absolute()
    if attached is None:
        return
    with _sentences(attached, "written"):
        remote = attached.remote(path)
        info = attached.files.get_file_info(remote)
        if info.type == fs.FileType.Directory:
            _remove_folder(attached, remote)
        elif info.type == fs.FileType.File:
            attached.files.delete_file(remote)


def prune(folder: Path) -> None:
    """Removes from the bucket what was in a folder, and no longer is.

    Raises:
      UserError: the bucket cannot be written.
    """
    attached = _of(folder)
    if attached is not None:
        with _sentences(attached, "read"):
            remote = attached.remote(folder.absolute())
            there = {info.path.removeprefix(remote).strip("/").partition("/")[0] for info in _all_in(attached, remote)}
        for name in there:
            if not (folder / name).exists():
                forget(folder / name)


def move(path: Path, target: Path) -> None:
    """Renames a folder, here and in the bucket, where it is copied and then removed.

    Raises:
      UserError: the bucket cannot be written.
    """
    path.rename(target)
    attached = _of(path)
    if attached is None:
        return
    source, to = attached.remote(path.absolute()), attached.remote(target.absolute())
    with _sentences(attached, "written"):
        found = attached.files.get_file_info(fs.FileSelector(source, recursive=True))
        copied = [info.path for info in found if info.type == fs.FileType.File]
        _together(lambda each: attached.files.copy_file(each, to + each.removeprefix(source)), copied)
        _remove_folder(attached, source)


def _remove_folder(attached: _Attached, remote: str) -> None:
    """Removes all objects of a folder of the bucket."""
    if attached.driver["driver"] == "gcs":
        # Arrow's `delete_dir` fails there in the end: it also removes an object that stands for the folder, and there
        # is none where nobody has made the folder as such.
        attached.files.delete_dir_contents(remote, missing_dir_ok=True)
    else:
        attached.files.delete_dir(remote)


def _files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder that are to be in the bucket too."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.name not in _LARGE:
                    yield from _files_in(Path(entry.path))
            else:
                yield Path(entry.path)


def _listed(attached: _Attached, remote: str) -> Iterator[fs.FileInfo]:
    """The bucket's files at `remote`, which is a file or a folder, without its large parts."""
    info = attached.files.get_file_info(remote)
    if info.type == fs.FileType.File:
        yield info
        return
    if attached.driver["driver"] == "gcs":
        for found in _all_in(attached, remote):
            parts = found.path.removeprefix(remote).strip("/").split("/")
            if not any(part.startswith(".") for part in parts) and not _LARGE & set(parts[:-1]):
                yield found
        return
    for found in attached.files.get_file_info(fs.FileSelector(remote, allow_not_found=True)):
        if found.base_name.startswith("."):
            continue
        if found.type == fs.FileType.File:
            yield found
        elif found.base_name not in _LARGE:
            yield from _listed(attached, found.path)


def _all_in(attached: _Attached, remote: str) -> list[fs.FileInfo]:
    """All files of a folder of the bucket and of the folders in it.

    In Google's store Arrow lists a folder in a folder only where an object stands for it, and none does.
    """
    found = attached.files.get_file_info(fs.FileSelector(remote, recursive=True, allow_not_found=True))
    return [info for info in found if info.type == fs.FileType.File]


def _version(path: Path) -> Version | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _remote_version(info: fs.FileInfo) -> Version:
    return info.size, info.mtime_ns


def _upload(attached: _Attached, source: Path, path: Path) -> None:
    """Sends a file, and gives the local one the bucket's time, by which both are known to be the same."""
    remote = attached.remote(path)
    with source.open("rb") as file, attached.files.open_output_stream(remote) as out:
        shutil.copyfileobj(file, out, _PIECE)
        size = file.tell()
    info = attached.files.get_file_info(remote)
    if source == path and path.stat().st_size == size:  # else it has grown meanwhile, and is sent again
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
        attached.known[path] = _remote_version(info)


def _download(attached: _Attached, info: fs.FileInfo) -> None:
    path = attached.path(info.path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with attached.files.open_input_stream(info.path) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file, _PIECE)
        os.utime(temporary, ns=(info.mtime_ns, info.mtime_ns))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _together(transfer: Callable[[Any], None], items: Iterable[Any]) -> None:
    items = list(items)
    if len(items) < 2:
        for item in items:
            transfer(item)
        return
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(transfer, items))


@contextlib.contextmanager
def _sentences(attached: _Attached, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{attached.address} cannot be {what} ({first_line(error)}): check the bucket, the credentials in the "
            "environment and the disk, and run again"
        ) from error
