"""Names of the places where activations can be read or edited.

A site is `<tower>.<place>`:

  vision.embed, vision.<i>.resid_mid, vision.<i>.resid_post     [images * (1 + patches), d_vision]
  vision.output                                                  after the last LayerNorm
  projector.<i>                                                  after linear layer i (before its GELU)
  language.embed, language.<i>.resid_mid, language.<i>.resid_post    [tokens, d_model]

`i` counts from 0; `resid_mid` is the residual stream after the block's attention, `resid_post` after the block.
"""

import dataclasses
import re
from typing import TypeVar

import jax

from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config

TOWERS = ("vision", "projector", "language")  # in the order of a pass
_BLOCK = re.compile(r"(?P<tower>vision|language)\.(?P<layer>\d+)\.(?P<point>resid_mid|resid_post)")
_EMBEDDING = re.compile(r"(?P<tower>vision|language)\.embed")
_LINEAR = re.compile(r"projector\.(?P<layer>\d+)")
_OUTPUT = "vision.output"

Layer = TypeVar("Layer", int, jax.Array)  # an index of a block, static or traced; its site codes are the same


@dataclasses.dataclass(frozen=True)
class Site:
    """One place. Nothing but this class knows how sites are numbered.

    Attributes:
      tower: the tower that the place is in.
      code: number of the place within its tower, in the order in which a forward pass meets them. In the vision tower
        and the language model the embedding is 0, block i's attention 2i + 1 and its end 2i + 2; the vision tower's
        output comes after its last block. In the projector linear layer i is i.
      name: the name, as above.
    """

    tower: str
    code: int
    name: str

    @classmethod
    def parse(cls, name: str, cfg: Maira2Config) -> "Site":
        """Finds the site called `name`.

        Raises:
          UserError: there is no such site in this model.
        """
        depth = {
            "vision": cfg.vision.num_hidden_layers,
            "language": cfg.text.num_hidden_layers,
            "projector": cfg.projector_n_layers,
        }
        if name == _OUTPUT:
            return cls("vision", cls.output(depth["vision"]), name)
        if found := _EMBEDDING.fullmatch(name):
            return cls(found["tower"], cls.embedding(), name)
        if (found := _LINEAR.fullmatch(name)) and int(found["layer"]) < depth["projector"]:
            return cls("projector", int(found["layer"]), name)
        if (found := _BLOCK.fullmatch(name)) and int(found["layer"]) < depth[found["tower"]]:
            code = cls.mid if found["point"] == "resid_mid" else cls.post
            return cls(found["tower"], code(int(found["layer"])), name)
        raise UserError(
            f"there is no site {name!r}: choose language.embed, language.<i>.resid_mid or language.<i>.resid_post "
            f"with i from 0 to {depth['language'] - 1}, the same in vision with i from 0 to {depth['vision'] - 1}, "
            f"vision.output, or projector.<i> with i from 0 to {depth['projector'] - 1}"
        )

    @classmethod
    def last(cls, cfg: Maira2Config) -> "Site":
        """The language model's residual stream after its last block, which its head reads."""
        return cls.parse(f"language.{cfg.text.num_hidden_layers - 1}.resid_post", cfg)

    @staticmethod
    def embedding() -> int:
        """The code of `embed`."""
        return 0

    @staticmethod
    def mid(layer: Layer) -> Layer:
        """The code of `<layer>.resid_mid`."""
        return 2 * layer + 1

    @staticmethod
    def post(layer: Layer) -> Layer:
        """The code of `<layer>.resid_post`."""
        return 2 * layer + 2

    @staticmethod
    def output(depth: int) -> int:
        """The code of `vision.output` in a tower of `depth` blocks."""
        return 2 * depth + 1

    @staticmethod
    def whole_blocks(code: int) -> int:
        """Number of blocks that a pass has finished when it meets the site `code`: the index of the first block that an
        edit at the site can change."""
        return code // 2

    @staticmethod
    def shifted(code: Layer, layers: int) -> Layer:
        """The code in the whole tower of a site that has `code` in the tower without its first `layers` blocks."""
        return code + 2 * layers
