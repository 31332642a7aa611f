"""Tokenizer files with MAIRA-2's added tokens, from a Llama file and from a corpus."""

import json

import pytest

from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.phantom.pretraining import tokenizer_files

CORPUS = (
    "There is a small left pleural effusion. The heart is normal in size. No pneumothorax.",
    "Given the current frontal image only. INDICATION: Cough and fever. TECHNIQUE: AP. COMPARISON: N/A",
)


def tokenizer_of(directory, image_size):
    """The tokenizer of a folder that has tokenizer files, with the image size that a model's configuration gives it."""
    (directory / "config.json").write_text(json.dumps({"vision_config": {"image_size": image_size, "patch_size": 14}}))
    return Tokenizer.from_dir(directory)


def test_a_llama_file_gives_maira2s_files_and_ids(shared_data, tmp_path):
    n_vocabulary = tokenizer_files.from_sentencepiece(shared_data / "llama-tokenizer" / "tokenizer.model", tmp_path)
    assert n_vocabulary == 32000
    sizes = {"tokenizer.json": 3656334, "added_tokens.json": 3723, "special_tokens_map.json": 552}
    assert {name: (tmp_path / name).stat().st_size for name in sizes} == sizes
    llama = tokenizer_of(tmp_path, 518)
    assert (llama.vocab_size, llama.image_id) == (32207, 32204)
    assert (llama.pad_id, llama.bos_id, llama.eos_id) == (0, 1, 2)
    assert llama.patches_per_image == 1369


def test_a_trained_tokenizer_is_laid_out_as_maira2s(tmp_path):
    tokenizer_files.from_corpus(CORPUS, 330, tmp_path)
    small = tokenizer_of(tmp_path, 28)
    assert small.vocab_size == 330 + 207
    assert small.image_id == 330 + 204
    assert small.pieces([0, 1, 2, 330, 333, 334, 434]) == ["<unk>", "<s>", "</s>", "<obj>", "</box>", "<x0>", "<y0>"]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(UserError, match="choose that number"):
        tokenizer_files.from_corpus(CORPUS, 5000, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        tokenizer_files.from_sentencepiece(tmp_path / "tokenizer.model", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        tokenizer_files.from_sentencepiece(tmp_path / "absent.model", tmp_path)
