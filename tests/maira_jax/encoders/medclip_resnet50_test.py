"""MedCLIP's ResNet-50, against transformers' ResNet under torchvision's names."""

import jax
import numpy as np
import pytest
import torch

from maira_jax.encoders import medclip_resnet50
from maira_jax.encoders.medclip_resnet50 import MedClipResNet50
from maira_jax.errors import UserError
from tests.helpers.tiny_model import relative
from tests.helpers.torch_encoders import RESNET, TorchResNet

PREFIX = "vision_model.model."
encode = jax.jit(lambda params, encoder, pixels: encoder.encode(params, pixels, "embedding"), static_argnames="encoder")


@pytest.fixture
def small(monkeypatch):
    """The encoder has the sizes of `RESNET`."""
    monkeypatch.setattr(MedClipResNet50.__init__, "__defaults__", (RESNET,))


def load(path):
    return MedClipResNet50.load(str(path), path.parent, (1, 1), seed=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_embeddings_are_those_of_torch(tmp_path, small, legacy):
    theirs = TorchResNet(RESNET)
    others = {"text_model.projection_head.weight": torch.ones(3), "logit_scale": torch.tensor(2.0)}
    torch.save(theirs.state | others, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    loaded = load(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    expected = theirs.embedding(pixels)
    rows = encode(loaded.params, loaded.encoder, pixels)
    assert rows.shape == (3, 1, 6)
    assert relative(rows[:, 0], expected / np.linalg.norm(expected, axis=1, keepdims=True)) < 1e-6


def test_embeddings_of_the_real_sizes(tmp_path):
    theirs = TorchResNet(medclip_resnet50.ResNetConfig())
    torch.save(theirs.state, tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path / "pytorch_model.bin")
    assert sum(leaf.size for leaf in jax.tree.leaves(loaded.params)) == 24_609_728
    pixels = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    expected = theirs.embedding(pixels)
    found = encode(loaded.params, loaded.encoder, pixels)[:, 0]
    assert relative(found, expected / np.linalg.norm(expected, axis=1, keepdims=True)) < 3e-6


class _Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    "change, message",
    {
        "missing": (lambda t: t.pop(f"{PREFIX}fc.weight"), "encoder; missing: model.fc.weight; use"),
        "extra": (lambda t: t.update({f"{PREFIX}fc.bias": torch.ones(6)}), "not of MedCLIP's .*: model.fc.bias; use"),
        "shape": (
            lambda t: t.update({f"{PREFIX}fc.weight": torch.ones(6, 16)}),
            r"with shape \(6, 16\) instead of \(6, 32\): model.fc.weight; use",
        ),
        "type": (
            lambda t: t.update({f"{PREFIX}bn1.bias": torch.ones(8, dtype=torch.int32)}),
            "of type int32, instead of F32: model.bn1.bias; use",
        ),
        "infinite": (
            lambda t: t.update({f"{PREFIX}bn1.bias": torch.full((8,), torch.inf)}),
            "holds a value of model.bn1.bias that is not finite: download",
        ),
        "half": (
            lambda t: [t.pop(name) for name in list(t) if ".layer1." in name],
            r"missing: .*model.layer1.\{0-1\}.conv1.weight",
        ),
        "none": (lambda t: t.clear(), "no tensor of this image encoder, since it holds none: give MedCLIP's"),
        "other": (
            lambda t: [t.update({f"swin.{name}": t.pop(name)}) for name in list(t)],
            r"no tensor of this image encoder, but \d+ others, such as swin.vision_model.*: give .* or choose",
        ),
        "malicious": (lambda t: t.update({"text_model": _Malicious()}), "cannot be read as tensors"),
        "no tensor": (lambda t: t.update({"epoch": 3}), "is no dict of tensors: give MedCLIP's pytorch_model.bin"),
    }.values(),
)
def test_another_file_gets_a_sentence(tmp_path, small, capsys, change, message):
    state = dict(TorchResNet(RESNET).state)
    change(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        load(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["", "nowhere.bin"])
def test_weights_that_are_not_there(small, tmp_path, weights):
    with pytest.raises(UserError, match=f"harvest.weights is '{weights}', where no file is: give .* or 'random'"):
        MedClipResNet50.load(weights, tmp_path, (1, 1), 0)


def test_random_weights_follow_the_seed(small, tmp_path):
    first, again, other = (MedClipResNet50.load("random", tmp_path, (1, 1), seed) for seed in (3, 3, 4))
    assert first.weights == again.weights == "random 3"
    same = jax.tree.map(lambda a, b: (a == b).all(), first.params, again.params)
    assert all(jax.tree.leaves(same))
    assert (first.params["model"]["fc"]["kernel"] != other.params["model"]["fc"]["kernel"]).all()


def test_rows_that_it_does_not_have():
    with pytest.raises(UserError, match="harvest.rows is 'patches', which .*: choose from embedding"):
        MedClipResNet50().chosen_rows("patches")
    assert MedClipResNet50().chosen_rows(None) == "embedding"


def test_blocks_that_it_does_not_have():
    assert MedClipResNet50().after(None) == MedClipResNet50()
    with pytest.raises(UserError, match="harvest.block is 0, but this encoder gives its output alone: leave it out"):
        MedClipResNet50().after(0)
