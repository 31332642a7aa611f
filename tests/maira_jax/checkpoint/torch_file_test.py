"""Torch's files, read and written without torch; what is malicious or damaged is refused."""

import collections
import functools
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from maira_jax.checkpoint import torch_file
from maira_jax.errors import UserError


class _Malicious:
    def __reduce__(self):
        return (print, ("executed",))


class _MaliciousState:
    """Smuggles its call into the state of an object that may be read."""

    def __reduce__(self):
        return (collections.OrderedDict, (), {"_metadata": _Malicious()})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value", [_Malicious(), _MaliciousState(), [torch.zeros(2), _Malicious()], torch.nn.Linear(2, 2)]
)
def test_no_object_is_unpickled(tmp_path, capsys, value, zipped):
    torch.save({"W_enc": value}, tmp_path / "ae.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(tmp_path / "ae.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_torch_are_read_without_torch(tmp_path, zipped):
    layer = torch.nn.Linear(4, 6)
    half = layer.weight.detach().to(torch.bfloat16)
    saved = {
        "state": layer.state_dict(),
        "parameter": layer.weight,
        "view": layer.weight.detach().T[1:, 2:5],
        "half": half.T,
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "plain": (1, "text", None, 0.5),
    }
    torch.save(saved, tmp_path / "ae.pt", _use_new_zipfile_serialization=zipped)
    found = torch_file.read(tmp_path / "ae.pt")
    np.testing.assert_array_equal(found["state"]["bias"], layer.bias.detach().numpy())
    np.testing.assert_array_equal(found["parameter"], layer.weight.detach().numpy())
    np.testing.assert_array_equal(found["view"], saved["view"].numpy())
    np.testing.assert_array_equal(found["half"].astype(np.float32), half.T.float().numpy())
    assert (found["scalar"], found["empty"].shape, found["plain"]) == (7, (0, 3), saved["plain"])


def test_torch_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    written = {
        "rows": rng.normal(size=(3, 5)).astype(np.float32),
        "columns": np.asfortranarray(rng.normal(size=(300, 500)).astype(np.float32)),
        "gaps": rng.normal(size=(4, 6))[:, ::2],
        "scalar": np.asarray(4, np.int32),
        "many": np.arange(70_000),
    }
    torch_file.write(tmp_path / "ae.pt", written)
    for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
        found = torch.load(tmp_path / "ae.pt", **options)
        for name, array in written.items():
            np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)
    assert found["columns"].stride() == (1, 300)
    again = torch_file.read(tmp_path / "ae.pt")
    assert all((again[name] == array).all() for name, array in written.items())


@pytest.mark.parametrize("layout", ["beyond", "overlap", "negative"])
def test_tensors_stay_inside_their_bytes(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(torch_file, "_tensor", functools.partial(_crooked, layout))
    torch_file.write(tmp_path / "ae.pt", {"W_enc": np.ones(16, np.float32)})
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(tmp_path / "ae.pt")


def _crooked(layout, key, array):
    """The description of a tensor that reaches beyond its bytes, is larger than they are, or starts before them."""
    offset, shape, strides = {"beyond": (9, 8, 1), "overlap": (0, 2**40, 0), "negative": (-4, 8, 1)}[layout]
    number, pair = torch_file._number, torch_file._tuple
    storage = pair(
        torch_file._text("storage"), torch_file._name("torch", "FloatStorage"), torch_file._text(key),
        torch_file._text("cpu"), number(array.size),
    )  # fmt: skip
    hooks = torch_file._name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = pair(
        storage + pickle.BINPERSID, number(offset), pair(number(shape)), pair(number(strides)), pickle.NEWFALSE, hooks
    )
    return torch_file._name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


@pytest.mark.parametrize("kept", [20, 60, 400, -1])
def test_a_truncated_file_of_the_older_format_gets_a_sentence(tmp_path, kept):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read as tensors \(.*\): copy the file again"):
        torch_file.read(path)


def test_what_begins_like_the_older_format_is_not_executed(tmp_path, capsys):
    path = tmp_path / "pytorch_model.bin"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    head = path.read_bytes()[: len(torch_file._LEGACY)]
    path.write_bytes(head + pickle.dumps(_Malicious()) * 5)
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(path)
    assert "executed" not in capsys.readouterr().out


def _archive(path, description, **members):
    """A file in the layout of torch's, with any bytes as its description."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", description)
        for name, content in members.items():
            archive.writestr(f"archive/data/{name}", content)


@pytest.mark.parametrize(
    "name", ["torch._utils._import_dotted_name", "torch._utils._rebuild_sparse_tensor", "torch.load", "builtins.print"]
)
def test_only_tensors_are_named(tmp_path, name):
    named = torch_file._name(*name.rsplit(".", 1)) + pickle.EMPTY_TUPLE
    _archive(tmp_path / "ae.pt", pickle.PROTO + b"\x02" + named + pickle.REDUCE + pickle.STOP)
    with pytest.raises(UserError, match=f"cannot be read as tensors .it names {name}, which is not a tensor"):
        torch_file.read(tmp_path / "ae.pt")


_REBUILD = torch_file._name("torch._utils", "_rebuild_tensor_v2")
_put, _get = (lambda at: pickle.BINPUT + bytes([at])), (lambda at: pickle.BINGET + bytes([at]))


def _storage(count):
    """The bytes of the member `a`, as values of four."""
    parts = (torch_file._text("storage"), torch_file._name("torch", "FloatStorage"), torch_file._text("a"))
    return torch_file._tuple(*parts, torch_file._text("cpu"), torch_file._number(count)) + pickle.BINPERSID


def _call(storage, shape, strides, function=_REBUILD):
    """A tensor of a storage; `shape` and `strides` are written by the caller."""
    arguments = torch_file._tuple(storage, torch_file._number(0), shape, strides, pickle.NEWFALSE, pickle.EMPTY_DICT)
    return function + arguments + pickle.REDUCE


def _numbers(*values):
    return torch_file._tuple(*map(torch_file._number, values))


def _described(*parts):
    return pickle.PROTO + b"\x02" + b"".join(parts) + pickle.STOP


def _listed(*items):
    return _described(pickle.EMPTY_LIST, pickle.MARK, *items, pickle.APPENDS)


def _many_copies():
    """2,000 tensors that are the whole of one storage of a megabyte."""
    one = _call(_storage(2**18), _numbers(2**18), _numbers(1))
    items = b"".join(torch_file._text(str(name)) + one for name in range(2000))
    return _described(pickle.EMPTY_DICT, pickle.MARK, items, pickle.SETITEMS)


def _many_scalars():
    """A hundred thousand tensors of one value of a storage."""
    arguments = torch_file._tuple(
        _storage(2**18), torch_file._number(0), _numbers(), _numbers(), pickle.NEWFALSE, pickle.EMPTY_DICT
    )
    return _listed(_REBUILD, _put(0), arguments, _put(1), (_get(0) + _get(1) + pickle.REDUCE) * 100_000)


def _other_budget():
    """Copies of a storage by a function whose budget is replaced by an array, which has a `take` as well."""
    state = torch_file._tuple(pickle.NONE, pickle.EMPTY_DICT + torch_file._text("_budget") + _get(0) + pickle.SETITEM)
    one = _call(_get(0), _numbers(2**15), _numbers(1), _get(1))
    return _listed(_storage(2**18), _put(0), _REBUILD, _put(1), state, pickle.BUILD, one * 1500)


def _outer_index():
    """An item of an array is set, at the indices of two others, which together name 6 * 10^10 values."""
    column, row = (_call(_storage(2**18), _numbers(*shape), _numbers(1, 1)) for shape in ((2**18, 1), (1, 2**18)))
    index = torch_file._tuple(column, row)
    return _described(_call(_storage(2**18), _numbers(1, 1), _numbers(1, 1)), index, _numbers(0), pickle.SETITEM)


def _dicts_of_an_array():
    pairs = _call(_storage(2**18), _numbers(2**17, 2), _numbers(2, 1))
    once = torch_file._name("collections", "OrderedDict") + torch_file._tuple(_get(0)) + pickle.REDUCE
    return _listed(pairs, _put(0), once * 20)


def _long_product():
    number = pickle.LONG1 + b"\xff" + b"\x77" * 255
    shape = pickle.MARK + number + _put(0) + _get(0) * 100_000 + pickle.TUPLE
    return _described(_call(_storage(2**18), shape + _put(1), _get(1)))


BOMBS = {
    "a number for the memo that takes 32 GB in C": b"\x80\x02}r\xff\xff\xff\xffcos\nsystem\n.",
    "a tuple of tuples as a key": b"\x80\x02}(" + b")" + b"\x85" * 2**20 + b"K\x01u.",
    "a number of a megabyte": b"\x80\x02\x8b" + (2**20).to_bytes(4, "little") + b"\x01" * 2**20 + b".",
    "text of a size that is not there": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".",
    "copies of a storage": _many_copies(),
    "many tensors of no size": _many_scalars(),
    "a budget that was replaced": _other_budget(),
    "arrays as an index": _outer_index(),
    "arrays as items of a dict": _dicts_of_an_array(),
    "a shape of a hundred thousand numbers": _long_product(),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_files_take_little_memory(tmp_path, bomb):
    _archive(tmp_path / "ae.pt", BOMBS[bomb], a=bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(tmp_path / "ae.pt")
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


TAKEN_APART = {
    "an array as arguments": _described(torch_file._name("torch._utils", "_rebuild_parameter"), _storage(2**18), b"R"),
    "an array as a storage's name": _described(_storage(2**18), pickle.BINPERSID),
    "an array as a shape": _described(_storage(2**18), _put(0), _call(_get(0), _get(0), _get(0))),
}


@pytest.mark.parametrize("case", TAKEN_APART)
def test_arrays_are_not_taken_apart_into_objects(tmp_path, case):
    """Which would take ten times their memory."""
    _archive(tmp_path / "ae.pt", TAKEN_APART[case], a=bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match="cannot be read as tensors"):
        torch_file.read(tmp_path / "ae.pt")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("attribute", ["values", "items", "__class__"])
@pytest.mark.parametrize("changed", [pickle.EMPTY_DICT, torch_file._name("collections", "OrderedDict")])
def test_attributes_in_a_file_change_nothing(tmp_path, attribute, changed):
    state = pickle.EMPTY_DICT + torch_file._text(attribute) + pickle.BININT1 + b"\x05" + pickle.SETITEM
    parts = (changed, torch_file._tuple(pickle.NONE, state), pickle.BUILD, changed, state, pickle.BUILD)
    _archive(tmp_path / "ae.pt", _listed(*parts, pickle.EMPTY_DICT))
    for found in torch_file.read(tmp_path / "ae.pt"):
        assert not isinstance(found, dict) or list(found.values()) == list(found.items()) == []
