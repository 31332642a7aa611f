"""Damage to the content of a file: to its bytes, or, where its kind is known, to what the bytes mean.

Every choice comes from the `random.Random` that is given, so that a seed, or hypothesis, repeats it. What has a
checksum of its own (gzip, zip, PNG) gets a right one again, so that the damage reaches what reads the content.
"""

import copy
import gzip
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_NUMBERS = (0, 1, -1, 2, 3, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64, -(2**63))
_TEXTS = (
    "",
    " ",
    "a",
    "\0",
    "\ufeff",
    "é",
    "\U0001f600",
    "\ud800",
    "../../x",
    "/dev/zero",
    "NaN",
    "1e400",
    "-0",
    "x" * 4096,
)
_DEEP = 100_000


def mutated(name: str, content: bytes, rng: random.Random) -> bytes:
    """The content of the file `name` with some damage; now and then what remains is still sound."""
    by_kind = next((change for ending, change in _BY_ENDING.items() if name.endswith(ending)), None)
    if by_kind is not None and content and rng.random() < 0.6:
        try:
            content = by_kind(content, rng)
        except Exception:  # what was damaged before may be of no kind any more
            content = damaged_bytes(content, rng)
        if rng.random() < 0.8:
            return content
    return damaged_bytes(content, rng)


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four flips, cuts, insertions, repetitions or other numbers."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_BYTE_CHANGES)(data, rng)
    return bytes(data[: 4 * len(content) + 4096])


def _span(data: bytearray, rng: random.Random, longest: int = 64) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + rng.randint(0, longest))


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _near_start(data: bytearray, rng: random.Random) -> None:
    """Most formats say at their start how large the rest is."""
    if data:
        data[rng.randrange(min(len(data), 128))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_span(data, rng, rng.choice((4, 64, 4096)))]


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randint(1, 16))


def _repeat(data: bytearray, rng: random.Random) -> None:
    part = bytes(data[_span(data, rng)])
    at = rng.randrange(len(data) + 1)
    data[at:at] = part * rng.randint(1, 4)


def _number(data: bytearray, rng: random.Random) -> None:
    """Another number of 2, 4 or 8 bytes."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    at = rng.randrange(len(data) + 1)
    data[at : at + size] = (rng.choice(_NUMBERS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _digits(data: bytearray, rng: random.Random) -> None:
    """Another number where digits stand."""
    places = [i for i, byte in enumerate(data[:65536]) if 48 <= byte <= 57]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = str(rng.choice(_NUMBERS)).encode()


def _fill(data: bytearray, rng: random.Random) -> None:
    part = _span(data, rng, 256)
    data[part] = bytes([rng.choice((0, 255, 32))]) * len(data[part])


def _encoding(data: bytearray, rng: random.Random) -> None:
    """As a text in another encoding."""
    data[:] = (
        bytes(data[:65536]).decode("latin-1").encode(rng.choice(("utf-16", "utf-16-be", "utf-32", "utf-7", "utf-8")))
    )


_BYTE_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _near_start, _near_start, _cut, _truncate, _insert, _repeat, _number, _number, _digits, _fill,
    _encoding,
)  # fmt: skip


def _json(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(rng.randint(1, 2)):
        value = _changed_value(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.03:
        text = text.replace("null", "[" * _DEEP, 1)
    return text.encode()


def _changed_value(value: Any, rng: random.Random) -> Any:
    """A JSON value in which one place, somewhere inside, holds something else."""
    value = copy.copy(value)
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if inside and rng.random() < 0.85:
        key = rng.choice(inside)
        if rng.random() < 0.15:
            del value[key]
        elif rng.random() < 0.1 and isinstance(value, dict):
            value[rng.choice(_TEXTS)] = value.pop(key)
        else:
            value[key] = _changed_value(value[key], rng)
        return value
    return rng.choice(
        (
            None, True, False, [], {}, [value], {"a": value}, [[[]]], [None], [value, value],
            rng.choice(_NUMBERS), rng.choice(_NUMBERS), rng.choice(_TEXTS), rng.choice(_TEXTS),
            float("nan"), float("inf"), 0.5, -0.0, 1e308, str(value)[:99], [rng.choice(_NUMBERS)] * 3,
        )
    )  # fmt: skip


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = rng.choice((_json, damaged_bytes))(lines[at], rng)
    return b"\n".join(lines)


def _csv(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    cells = lines[at].split(b",")
    cell = rng.randrange(len(cells))
    other = rng.choice((*_TEXTS, '"', '""', "a,b", "x" * 200_000, *map(str, _NUMBERS))).encode(errors="surrogatepass")
    rng.choice((lambda: cells.__setitem__(cell, other), lambda: cells.insert(cell, other), lambda: cells.pop(cell)))()
    lines[at] = b",".join(cells)
    return b"\n".join(lines)


def _gzip(content: bytes, rng: random.Random) -> bytes:
    return gzip.compress(rng.choice((_csv, damaged_bytes))(gzip.decompress(content), rng), 1)


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """Another header, of the length that the file says."""
    size = int.from_bytes(content[:8], "little")
    head = rng.choice((_json, damaged_bytes))(content[8 : 8 + size], rng)
    return len(head).to_bytes(8, "little") + head + content[8 + size :]


def _zip(content: bytes, rng: random.Random) -> bytes:
    """A member with other bytes, missing, repeated, renamed or compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        members = source.infolist()
        chosen = rng.choice(members)
        how = rng.choice(("bytes", "bytes", "bytes", "missing", "twice", "renamed", "compressed"))
        for member in members:
            data, kept = source.read(member), copy.copy(member)
            if member is chosen:
                if how == "missing":
                    continue
                if how == "bytes":
                    data = damaged_bytes(data, rng)
                elif how == "renamed":
                    kept.filename = rng.choice(("x", "../x", f"{member.filename}x"))
                elif how == "compressed":
                    kept.compress_type = zipfile.ZIP_DEFLATED
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that are there twice
                for _ in range(2 if member is chosen and how == "twice" else 1):
                    target.writestr(kept, data)
    return out.getvalue()


def _png(content: bytes, rng: random.Random) -> bytes:
    """A chunk with other bytes and the right checksum, or without it, or twice."""
    at, chunks = 8, []
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    where = rng.randrange(len(chunks))
    name, data = chunks[where]
    if rng.random() < 0.3:
        chunks[where : where + 1] = rng.choice(([], [(name, data)] * 2, [(b"tRNS", data)], [(name, b"")]))
    elif name == b"IDAT" and rng.random() < 0.5:
        chunks[where] = name, zlib.compress(damaged_bytes(zlib.decompress(data), rng), 1)
    else:
        chunks[where] = name, damaged_bytes(data, rng)
    found = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return content[:8] + b"".join(found)


def _parquet(content: bytes, rng: random.Random) -> bytes:
    """A table with a column missing, renamed, of another type, or with missing and other values."""
    table = pq.read_table(io.BytesIO(content))
    at = rng.randrange(table.num_columns)
    name, values = table.column_names[at], table.column(at).to_pylist()
    how = rng.choice(("missing", "renamed", "type", "nulls", "rows", "values", "empty", "twice"))
    if how == "missing":
        table = table.remove_column(at)
    elif how == "renamed":
        table = table.rename_columns(
            [rng.choice(_TEXTS[:7]) if i == at else n for i, n in enumerate(table.column_names)]
        )
    elif how == "type":
        other = rng.choice(
            ([str(value) for value in values], [b"\xff"] * len(values), [[1]] * len(values), [1.5] * len(values),
             [None] * len(values), [{"a": 1}] * len(values), [True] * len(values))
        )  # fmt: skip
        table = table.set_column(at, name, pa.array(other))
    elif how == "nulls":
        table = table.set_column(at, name, pa.array([None, *values[1:]], table.schema.field(at).type))
    elif how == "rows":
        table = table.take(rng.choices(range(len(values)), k=rng.randint(0, 2 * len(values))))
    elif how == "values":
        other = [rng.choice((float("nan"), -1, 0, 2**31 - 1, "x", *values[:2])) for _ in values]
        table = table.set_column(at, name, pa.array(other, table.schema.field(at).type))
    elif how == "empty":
        table = table.slice(0, 0)
    else:
        table = table.append_column(name, table.column(at))
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


_BY_ENDING: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".zarray": _json,
    ".csv.gz": _gzip,
    ".csv": _csv,
    ".safetensors": _safetensors,
    ".pt": _zip,
    ".npz": _zip,
    ".png": _png,
    ".parquet": _parquet,
}
