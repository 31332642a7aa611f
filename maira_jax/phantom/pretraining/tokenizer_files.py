"""Builds the tokenizer files of a MAIRA-2 checkpoint, trained on a corpus or from the standard Llama file.

Both give a non-legacy Llama tokenizer (BPE with byte fallback; only the first piece of a text gets the word-boundary
mark) with MAIRA-2's 207 added tokens after the base vocabulary, left padding with `<unk>` and the begin token added.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from maira_jax.errors import UserError
from maira_jax.inputs.prompt import IMAGE_TOKEN, MAIRA2_CHAT, SYSTEM
from maira_jax.run import files

BASE_SPECIAL = ("<unk>", "<s>", "</s>")
# The order and the last two names are not published; the count and the position of <image> are.
ADDED_TOKENS = (
    "<obj>",
    "</obj>",
    "<box>",
    "</box>",
    *(f"<x{i}>" for i in range(100)),
    *(f"<y{i}>" for i in range(100)),
    IMAGE_TOKEN,
    "<lat_image>",
    "<prev_im>",
)
_BYTES = tuple(f"<0x{i:02X}>" for i in range(256))
_MARK = "\u2581"

# Renders MAIRA-2's known prompt; the checkpoint's own source is not published.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + '  ' }}"
    "{% else %}{% if loop.first %}{{ '" + SYSTEM + "  ' }}{% endif %}"
    "{{ message['role'].upper() + ':  ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '  ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def from_corpus(texts: Iterable[str], n_vocabulary: int, out_dir: Path) -> None:
    """Trains a tokenizer and writes its files.

    Args:
      texts: prompts and reports like those that the model will see (the fixed text of MAIRA-2's prompts is added once).
      n_vocabulary: size of the base vocabulary: 3 special tokens, 256 bytes, the characters of the corpus and its
        frequent pieces. The added tokens follow; `<image>` gets the id `n_vocabulary + 204`.
      out_dir: folder to write to.

    Raises:
      UserError: `n_vocabulary` is too small for the characters, or larger than the corpus has pieces for.
    """
    trainable = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    # As in Llama's file, a piece holds letters, one digit, or punctuation, never a mixture.
    trainable.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(_MARK, prepend_scheme="first", split=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    reserved = [*BASE_SPECIAL, *_BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocabulary, special_tokens=reserved, initial_alphabet=[_MARK], show_progress=False
    )
    fixed = (MAIRA2_CHAT.prefix + MAIRA2_CHAT.suffix,)
    trainable.train_from_iterator((*fixed, *texts), trainer)
    learned = json.loads(trainable.to_str())["model"]
    if len(learned["vocab"]) != n_vocabulary:
        raise UserError(
            f"n_vocabulary is {n_vocabulary}, but this corpus gives a vocabulary of {len(learned['vocab'])}: "
            "choose that number"
        )
    _write(learned["vocab"], [tuple(pair) for pair in learned["merges"]], out_dir)


def from_sentencepiece(tokenizer_model: Path, out_dir: Path) -> int:
    """Writes MAIRA-2's tokenizer files from a standard Llama sentencepiece file.

    Returns:
      The size of the base vocabulary.

    Raises:
      UserError: the file is missing or is not a sentencepiece model.
    """
    import sentencepiece  # only this function reads such files

    if not Path(tokenizer_model).is_file():
        raise UserError(f"{tokenizer_model} does not exist: check the path")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{tokenizer_model} is not a sentencepiece model: restore the file") from error
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces)}
    _write(vocab, _merges(vocab, scores), out_dir)
    return len(vocab)


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of the vocabulary, in descending order of the scores.

    Sentencepiece joins by the score of the resulting piece, so every split of a piece into two known ones is a merge.
    The order must be that of the scores and not of the ids: pieces of several spaces have low ids but the lowest score,
    so that they are never formed inside a text such as MAIRA-2's prompt.
    """
    merges = []
    for piece, score in scores.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += [(score, pair) for pair in known]
    merges.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
    return [pair for _, pair in merges]


def _write(vocab: dict[str, int], merges: list[tuple[str, str]], out_dir: Path) -> None:
    n_vocabulary = len(vocab)
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", BASE_SPECIAL.index("<s>"))]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in BASE_SPECIAL])
    # Not special: decoding without special tokens must keep boxes.
    backend.add_tokens([AddedToken(token, normalized=True, special=False) for token in ADDED_TOKENS])
    with files.atomic_path(out_dir / "tokenizer.json") as temporary:
        backend.save(str(temporary))
    added = {token: n_vocabulary + i for i, token in enumerate(ADDED_TOKENS)}
    files.write_json(out_dir / "added_tokens.json", dict(sorted(added.items())))
    files.write_json(out_dir / "special_tokens_map.json", _special_tokens_map())
    files.write_json(out_dir / "tokenizer_config.json", _tokenizer_config(added))
    files.write_json(out_dir / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _special_tokens_map() -> dict[str, Any]:
    def entry(token: str) -> dict[str, Any]:
        return {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    return {
        "bos_token": entry("<s>"),
        "eos_token": entry("</s>"),
        "pad_token": entry("<unk>"),
        "unk_token": entry("<unk>"),
    }


def _tokenizer_config(added: dict[str, int]) -> dict[str, Any]:
    def entry(token: str, base: bool) -> dict[str, Any]:
        return {
            "content": token,
            "lstrip": False,
            "normalized": not base,
            "rstrip": False,
            "single_word": False,
            "special": base,
        }

    decoder = {str(i): entry(token, base=True) for i, token in enumerate(BASE_SPECIAL)}
    decoder |= {str(i): entry(token, base=False) for token, i in added.items()}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "extra_special_tokens": {},
        "legacy": False,
        "model_max_length": 4096,
        "pad_token": "<unk>",
        "padding_side": "left",
        "processor_class": "Maira2Processor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
