"""From prompts to token ids, each with its kind, and back.

The fast tokenizer of the checkpoint (`tokenizer.json`) does the work: MAIRA-2's is a non-legacy Llama tokenizer, where
only the very first piece of a text gets the word-boundary mark. Its slow twin and the legacy mode give other ids.
"""

import dataclasses
import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers

from maira_jax.errors import UserError
from maira_jax.inputs.prompt import IMAGE_TOKEN, ChatTemplate, Prompt, PromptSection, check_text
from maira_jax.run import files

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


_MAX_PATCHES = 256  # along a side of an image; MAIRA-2 has 37


class Kind(IntEnum):
    """What a token is part of."""

    PAD = 0
    BOS = 1
    BOILERPLATE = 2
    IMAGE = 3
    IMAGE_LAST = 4
    INDICATION = 5
    TECHNIQUE = 6
    COMPARISON = 7
    PRIOR_REPORT = 8
    FINDINGS = 9
    EOS = 10


# The section of a study's sequence that a token is part of, as every file and field names it.
SECTION_NAMES = {kind: "image" if kind == Kind.IMAGE_LAST else kind.name.lower() for kind in Kind}
SECTIONS = tuple(dict.fromkeys(SECTION_NAMES.values()))


_SECTION_KINDS = {
    PromptSection.INDICATION: Kind.INDICATION,
    PromptSection.TECHNIQUE: Kind.TECHNIQUE,
    PromptSection.COMPARISON: Kind.COMPARISON,
    PromptSection.PRIOR_REPORT: Kind.PRIOR_REPORT,
    # A phrase to locate is written by the user about this study, as an indication is.
    PromptSection.PHRASE: Kind.INDICATION,
}

FRONTAL = "frontal"  # the image tokens of a study's current frontal image, which comes first
TEXT_AND_FRONTAL = "text_and_frontal"  # these, and the tokens of "paper"

# The tokens whose activations an SAE is trained on. "paper" is what the MAIRA-2 SAE paper states ("all but
# intermediate image tokens and boilerplate parts of the prompt"); which tokens exactly these are is our interpretation.
TOKEN_FILTERS: dict[str, frozenset[Kind]] = {
    "paper": frozenset(
        {
            Kind.IMAGE_LAST,
            Kind.INDICATION,
            Kind.TECHNIQUE,
            Kind.COMPARISON,
            Kind.PRIOR_REPORT,
            Kind.FINDINGS,
        }
    ),
    "findings": frozenset({Kind.FINDINGS}),
    "all": frozenset(Kind) - {Kind.PAD},
    FRONTAL: frozenset({Kind.IMAGE, Kind.IMAGE_LAST}),
}
TOKEN_FILTERS[TEXT_AND_FRONTAL] = TOKEN_FILTERS["paper"] | TOKEN_FILTERS[FRONTAL]


def token_filter_mask(kinds: np.ndarray, token_filter: str) -> np.ndarray:
    """Which tokens a named filter keeps.

    Args:
      kinds: [..., n] integers of `Kind`, of whole sequences.
      token_filter: a key of `TOKEN_FILTERS`.

    Returns:
      bool, the shape of `kinds`.

    Raises:
      UserError: there is no such filter.
    """
    if token_filter not in TOKEN_FILTERS:
        raise UserError(f"harvest.token_filter is {token_filter!r}: choose from {', '.join(TOKEN_FILTERS)}")
    if token_filter == TEXT_AND_FRONTAL:
        return token_filter_mask(kinds, "paper") | token_filter_mask(kinds, FRONTAL)
    kept = np.isin(kinds, [int(kind) for kind in TOKEN_FILTERS[token_filter]])
    if token_filter == FRONTAL:
        last = kinds == Kind.IMAGE_LAST
        kept &= np.cumsum(last, axis=-1) - last == 0
    return kept


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One tokenised study.

    Attributes:
      ids: int32 [n].
      kinds: int8 [n], of `Kind`.
      n_prompt: number of tokens of the prompt.
    """

    ids: np.ndarray
    kinds: np.ndarray
    n_prompt: int

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """A checkpoint's tokenizer with its chat template.

    Attributes:
      pad_id, bos_id, eos_id, image_id: ids of the special tokens, as the checkpoint's files give them.
      vocab_size: number of tokens, added ones included (32207 for MAIRA-2).
      patches_per_image: number of image tokens for each `<image>` (1369 for MAIRA-2).
      chat: the checkpoint's chat template.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat: ChatTemplate,
        special: dict[str, str],
        patches_per_image: int,
        source: Path,
    ):
        self._backend = backend
        self._source = source
        self.chat = chat
        self.patches_per_image = patches_per_image
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.pad_id = self._id(special["pad_token"])
        self.bos_id = self._id(special["bos_token"])
        self.eos_id = self._id(special["eos_token"])
        self.image_id = self._id(IMAGE_TOKEN)

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> Self:
        """Reads `tokenizer.json`, `tokenizer_config.json`, the chat template and the number of patches of an image.

        Raises:
          UserError: a file is missing or broken, or lacks a token that MAIRA-2 needs.
        """
        checkpoint_dir = Path(checkpoint_dir)
        path = checkpoint_dir / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: copy it from the checkpoint, or build it from tokenizer.model with "
                "maira_jax.phantom.pretraining.tokenizer_files"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises the bare class for every kind of broken file
            raise UserError(f"{path} is not a tokenizer file ({error}): restore the file") from error
        backend.no_padding()
        backend.no_truncation()
        return cls(
            backend,
            ChatTemplate.from_dir(checkpoint_dir),
            _special_tokens(checkpoint_dir),
            _patches_per_image(checkpoint_dir),
            path,
        )

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"{self._source} has no token {token}: this is not a MAIRA-2 tokenizer")
        return int(found)

    def text(self, prompt: Prompt) -> str:
        """The whole prompt as text, in the checkpoint's chat template."""
        return self.chat.render(prompt.content)

    def encode(self, prompt: Prompt, findings: str | None = None) -> Encoded:
        """Tokenises a prompt, and after it the findings and the end token where findings are given.

        Prompt and findings are tokenised separately and joined. The prompt ends with a space, which is a separate token
        when generation starts from it; tokenised together, that space would merge with the first word of the findings,
        and the model would be in a state that it is never in when it generates. So the first word of the findings has
        its own word-boundary mark (the "single leading space" of MAIRA-2's completions), exactly as a generated one
        does. Findings that begin with a grounding token have no such mark.

        Raises:
          UserError: as `check_text`, of the findings.
        """
        ids, kinds = self._encode_prompt(prompt)
        n_prompt = len(ids)
        if findings is not None:
            check_text(findings, "a study's findings")
            written = self._backend.encode(findings.strip(), add_special_tokens=False).ids
            ids = np.concatenate([ids, np.asarray([*written, self.eos_id], np.int32)])
            kinds = np.concatenate([kinds, np.asarray([Kind.FINDINGS] * len(written) + [Kind.EOS], np.int8)])
        return Encoded(ids, kinds, n_prompt)

    def _encode_prompt(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
        encoding = self._backend.encode(self.text(prompt), add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        kinds = np.full(len(ids), Kind.BOILERPLATE, np.int8)
        start, end = np.asarray(encoding.offsets, np.int64).reshape(-1, 2).T
        shift = len(self.chat.prefix)
        for span in prompt.spans:
            # A token that holds any character of a section belongs to it, not to the boilerplate it also touches.
            kinds[(end > span.start + shift) & (start < span.end + shift)] = _SECTION_KINDS[span.section]
        is_image = ids == self.image_id
        if is_image.sum() != prompt.n_images:
            raise UserError(f"{self._source} does not keep {IMAGE_TOKEN} as one token: this is not a MAIRA-2 tokenizer")
        kinds[is_image] = Kind.IMAGE
        repeats = np.where(is_image, self.patches_per_image, 1)
        ids, kinds = np.repeat(ids, repeats), np.repeat(kinds, repeats)
        ends = np.cumsum(repeats) - 1  # position of each unexpanded token's last copy
        kinds[ends[is_image]] = Kind.IMAGE_LAST
        return np.insert(ids, 0, self.bos_id), np.insert(kinds, 0, Kind.BOS)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of generated ids without special tokens and surrounding space; grounding tokens stay."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True).strip()

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Each token's own text, a word boundary as a leading space; a byte token as its character if it is ASCII.

        A model's vocabulary can be larger than its tokenizer's: such an id is its number in angle brackets.
        """
        return [self._piece(int(i)) for i in ids]

    def _piece(self, token_id: int) -> str:
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return f"<{token_id}>"
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte and int(byte[1], 16) < 128:
            return chr(int(byte[1], 16))
        return piece.replace("\u2581", " ")

    def batch(self, rows: Sequence[Encoded], length: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pads rows to one length, on the right.

        Args:
          rows: B tokenised studies.
          length: T, the padded length; None: that of the longest row.

        Returns:
          tokens int32 [B, T], mask bool [B, T] (True for tokens), kinds int8 [B, T].

        Raises:
          ValueError: a row is longer than `length`.
        """
        max_length = max((len(row) for row in rows), default=0)
        length = max_length if length is None else length
        if max_length > length:
            raise ValueError(f"a row of {max_length} tokens does not fit into {length}")
        tokens = np.full((len(rows), length), self.pad_id, np.int32)
        mask = np.zeros((len(rows), length), bool)
        kinds = np.full((len(rows), length), Kind.PAD, np.int8)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)], kinds[i, : len(row)] = row.ids, True, row.kinds
        return tokens, mask, kinds


def _special_tokens(checkpoint_dir: Path) -> dict[str, str]:
    """Names of the special tokens; an entry may be a string or a dictionary with `content`."""
    names = {"pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = checkpoint_dir / file
        config = files.read_object(path) if path.is_file() else {}
        for key in names:
            value = config.get(key)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                names[key] = value
    return names


def _patches_per_image(checkpoint_dir: Path) -> int:
    path = checkpoint_dir / "config.json"
    vision = files.read_object(path).get("vision_config")
    if not isinstance(vision, dict):
        raise UserError(f"{path} has no vision_config: this is not a MAIRA-2 checkpoint")
    # Hugging Face leaves out of config.json what is equal to its defaults, which for Dinov2 are these.
    sides = vision.get("image_size", 224), vision.get("patch_size", 14)
    if not all(type(side) is int and side > 0 for side in sides) or not 0 < sides[0] // sides[1] <= _MAX_PATCHES:
        raise UserError(
            f"{path} says that an image of side {sides[0]!r:.20} has patches of side {sides[1]!r:.20}: restore it"
        )
    return (sides[0] // sides[1]) ** 2
