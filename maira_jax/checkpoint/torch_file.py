"""The price of needing no torch and executing no pickle: torch's files of named tensors, read and written.

Such a file (`ae.pt`, `pytorch_model.bin`) is a zip archive: a pickle that describes the tensors, and one member with
the bytes of each tensor. Before version 1.6 torch wrote pickles and bytes one after the other. The pickle is read by an
unpickler that knows the few names of torch that describe tensors and refuses every other name, so that nothing in a
file is executed. A tensor may have any strides inside its bytes.

What is read takes memory in proportion to the file: the unpickler is Python's own in Python, which, other than that in
C, allocates nothing for numbers that a file names; all tensors together may have a few times the bytes of the file; and
a pickle can change nothing but the lists and dicts that it makes, so that it can neither loosen these limits nor have
numpy work for it.
"""

import io
import math
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from maira_jax.errors import UserError, first_line
from maira_jax.run import files

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}
_PICKLE, _BYTE_ORDER, _VERSION, _DATA = "data.pkl", "byteorder", "version", "data/"
_MAX_PICKLE_BYTES = 2**24
# Tensors that share bytes are copies of them: all together have at most this many times the bytes of the file.
_MAX_TIMES_LARGER = 4
# A tensor without values takes memory, too; torch writes more than a fourth of this for each.
_MIN_TENSOR_BYTES = 128
_MAX_DIMENSIONS = 32
# What torch writes into a description. Others make numbers of megabytes, or know more than lists, dicts and tensors.
_OPCODES = (
    pickle.PROTO, pickle.STOP, pickle.MARK, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE,
    pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID,
    pickle.BINUNICODE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.BININT,
    pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.NEWTRUE, pickle.NEWFALSE, pickle.NONE,
    pickle.SETITEM, pickle.SETITEMS, pickle.APPEND, pickle.APPENDS,
)  # fmt: skip
# The pickle of the number that begins a file of the format before 1.6.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Torch pads its archives so that the bytes of a tensor can be mapped into memory.
_ALIGNMENT = 64


def read(path: Path) -> Any:
    """What `torch.save` wrote: dicts of numpy arrays and plain values. bfloat16 arrays have the dtype of ml_dtypes.

    Raises:
      UserError: the file is missing, is damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            legacy = file.read(len(_LEGACY)) == _LEGACY
        if legacy:
            return _LegacyFile(path.read_bytes()).load()
        with zipfile.ZipFile(path) as archive:
            return _TorchArchive(archive, path.stat().st_size).load()
    except UserError:
        raise
    except Exception as error:  # a damaged archive fails in zipfile, pickle, numpy or here, in many classes
        raise UserError(
            f"{path} cannot be read as tensors ({first_line(error)}): copy the file again, or export it anew"
        ) from error


class _ByteBudget:
    """How many bytes a file of `size` may yet be made into."""

    def __init__(self, size: int):
        self._left = _MAX_TIMES_LARGER * size

    def take(self, n_bytes: int) -> None:
        """Raises UnpicklingError where they are too many."""
        self._left -= n_bytes
        if self._left < 0:
            raise pickle.UnpicklingError("its tensors are far larger than the file")


class _TorchArchive:
    """An open archive that torch wrote, of `size` bytes."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._budget = _ByteBudget(size)
        self._read_budget = _ByteBudget(size)
        self._members = {member.filename: member for member in archive.infolist()}
        self._archive = archive
        pickles = [name for name in self._members if name.endswith(f"/{_PICKLE}")]
        if len(pickles) != 1:
            raise ValueError("it is not an archive that torch wrote")
        self._root = pickles[0].removesuffix(_PICKLE)

    def load(self) -> Any:
        order = f"{self._root}{_BYTE_ORDER}"
        if order in self._members and self._bytes(_BYTE_ORDER) != b"little":
            raise ValueError("its bytes are not in little-endian order")
        if self._members[f"{self._root}{_PICKLE}"].file_size > _MAX_PICKLE_BYTES:
            raise ValueError("its description is too large")
        return _TensorUnpickler(self._bytes(_PICKLE), self._storage, self._budget).load()

    def _bytes(self, name: str) -> bytes:
        member = self._members[f"{self._root}{name}"]
        # Torch stores without compression; a compressed member could unfold to any size.
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        self._read_budget.take(member.file_size)
        return self._archive.read(member)

    def _storage(self, description: Any) -> np.ndarray:
        """The one-dimensional array of a persistent id."""
        dtype, key, count = _described(description)
        values = np.frombuffer(self._bytes(f"{_DATA}{key}"), dtype)
        if len(values) != count:
            raise ValueError(f"a tensor of {count} values has {len(values)}")
        return values


class _LegacyFile:
    """The content of a file of the format before 1.6: five pickles, then the count and the values of each storage."""

    def __init__(self, content: bytes):
        self._content, self._at = content, len(_LEGACY)
        self._budget = _ByteBudget(len(content))
        self._dtypes: dict[str, np.dtype] = {}
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        self._pickle()  # the format's version
        if _TensorUnpickler(self._pickle(), _described, self._budget).load().get("little_endian") is not True:
            raise ValueError("its bytes are not in little-endian order")
        description = self._pickle()
        _StorageLister(description, self._list, self._budget).load()
        for key in _TensorUnpickler(self._pickle(), _described, self._budget).load():
            count, start = int.from_bytes(self._content[self._at : self._at + 8], "little"), self._at + 8
            self._storages[key] = np.frombuffer(self._content, self._dtypes[key], count, start)
            self._at = start + self._storages[key].nbytes
        return _TensorUnpickler(description, self._storage, self._budget).load()

    def _pickle(self) -> bytes:
        """The next pickle, which is not executed: its end alone is sought."""
        start, part = self._at, io.BytesIO(self._content[self._at : self._at + _MAX_PICKLE_BYTES])
        for _ in pickletools.genops(part):
            self._at = start + part.tell()
        return self._content[start : self._at]

    def _list(self, description: Any) -> None:
        dtype, key, _ = _described(description)
        self._dtypes[key] = dtype

    def _storage(self, description: Any) -> np.ndarray:
        dtype, key, count = _described(description)
        if (self._dtypes[key], len(self._storages[key])) != (dtype, count):
            raise ValueError(f"a tensor of {count} values has {len(self._storages[key])}")
        return self._storages[key]


def _described(description: Any) -> tuple[np.dtype, str, int]:
    """The type of a tensor's bytes, their name and the number of values, of a persistent id."""
    if type(description) is not tuple:  # an array would be taken apart into objects
        raise ValueError("it refers to something that is not a tensor's bytes")
    kind, storage, key, _, count, *view = description
    if kind != "storage" or not isinstance(storage, _StorageType) or not isinstance(key, str) or any(view):
        raise ValueError("it refers to something that is not a tensor's bytes")
    return storage.dtype, key, count


class _StorageType:
    """Replaces torch's class of a tensor's bytes."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _StateDict(dict[Any, Any]):
    """Replaces dict and OrderedDict."""

    __slots__ = ()

    def __init__(self) -> None:  # torch gives no items here: a call that copies could be made again and again
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int):  # deep tuples as keys would overflow the stack
            raise pickle.UnpicklingError("a key is neither text nor a number")
        super().__setitem__(key, value)


class _TensorBuilder:
    """Replaces the functions that make a tensor from bytes, and a parameter from a tensor."""

    __slots__ = ("_budget",)

    def __init__(self, budget: _ByteBudget):
        self._budget = budget

    def __call__(self, values: Any, *layout: Any) -> np.ndarray:
        if not isinstance(values, np.ndarray):
            raise pickle.UnpicklingError("it makes a tensor of something that is not bytes")
        if len(layout) == 2:
            return values
        offset, shape, strides = layout[:3]
        if any(type(sizes) is not tuple or len(sizes) > _MAX_DIMENSIONS for sizes in (shape, strides)):
            raise pickle.UnpicklingError("a tensor's shape is not a few numbers")
        if not all(type(number) is int for number in (offset, *shape, *strides)):
            raise pickle.UnpicklingError("a tensor's shape holds something that is not a number")
        self._budget.take(max(math.prod(shape) * values.itemsize, _MIN_TENSOR_BYTES))
        return _strided(values, offset, shape, strides)


def _strided(values: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """The tensor at `offset` in one-dimensional `values`; strides in values. Checked, since numpy does not."""
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
        raise pickle.UnpicklingError("a tensor's shape does not fit its strides")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= len(values) or math.prod(shape) > max(len(values), 1):
        raise pickle.UnpicklingError("a tensor reaches beyond its bytes")
    size = values.itemsize
    view = np.lib.stride_tricks.as_strided(values[offset:], shape, [stride * size for stride in strides])
    return np.array(view, order="K")


class _TensorUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES}

    def __init__(self, content: bytes, storage: Any, budget: _ByteBudget):
        super().__init__(io.BytesIO(content))
        self._storage, self._budget = storage, budget

    def load_empty_dictionary(self) -> None:
        self.append(_StateDict())  # type: ignore[attr-defined]

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_build(self) -> None:
        """Drops the attributes that torch attaches to a state dict: whatever they were set on would be changed."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self) -> None:
        """Calls with a tuple alone: an array would be taken apart into objects."""
        if type(self.stack[-1]) is not tuple:  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it calls with something that is no tuple")
        super().load_reduce()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._update([(key, value)])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _update(self, items: Iterable[tuple[Any, Any]]) -> None:
        """Sets items of a dict alone: arrays as the indices of an array name more values than memory has."""
        found = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(found, _StateDict):
            raise pickle.UnpicklingError("it sets items of something that is no dict")
        for key, value in items:
            found[key] = value

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _StateDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _TensorBuilder(self._budget)
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> np.ndarray:
        return self._storage(pid)


class _StorageLister(_TensorUnpickler):
    """Calls `storage` for each of a description's tensors, and makes none."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return (lambda *_: None) if isinstance(found, _TensorBuilder) else found


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file that `torch.load` reads as a dict of CPU tensors; transposed arrays keep their strides.

    Raises:
      UserError: the disk is full.
    """
    assert sys.byteorder == "little"
    packed = {name: _packed(np.asarray(array)) for name, array in tensors.items()}
    members = {_PICKLE: _description(packed), _BYTE_ORDER: b"little", _VERSION: b"3\n"}
    with files.atomic_path(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            _add(archive, name, content)
        for key, array in enumerate(packed.values()):
            _add(archive, f"{_DATA}{key}", array.tobytes(order="A"))


def _packed(array: np.ndarray) -> np.ndarray:
    """The array itself where its values are contiguous in C or Fortran order, else a copy that is."""
    return array if array.flags.c_contiguous or array.flags.f_contiguous else np.ascontiguousarray(array)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(f"archive/{name}")  # the same date in every file
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(member.filename) + 4  # after the header and the header of the padding
    padding = -start % _ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(member, content)


def _description(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors. Written by hand, since it names functions of torch, which may be absent."""
    items = b"".join(_text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(tensors.items()))
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(key: str, array: np.ndarray) -> bytes:
    """A call of torch's `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    storage = _tuple(
        _text("storage"), _name("torch", _STORAGES[array.dtype]), _text(key), _text("cpu"), _number(array.size)
    )
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _number(0),
        _tuple(*map(_number, array.shape)),
        _tuple(*map(_number, strides)),
        pickle.NEWFALSE,
        hooks,
    )
    return _name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]  # without the frame around a single value
