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

from maira_jax.errors import UserError
from maira_jax.model.config import Maira2Config

TOWERS = ("vision", "projector", "language")  # in the order of a pass
_PATTERN = re.compile(
    r"(vision|language)\.(?:(embed)|(\d+)\.(resid_mid|resid_post))|(vision)\.(output)|(projector)\.(\d+)"
)


@dataclasses.dataclass(frozen=True)
class Site:
    """One place. `code` numbers the places of a tower in the order in which a forward pass meets them.

    In the vision tower and the language model the embedding is 0, block i's attention 2i + 1 and its end 2i + 2;
    the vision tower's output comes after its last block. In the projector linear layer i is i.
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
        found = _PATTERN.fullmatch(name)
        if found:
            tower = found[1] or found[5] or found[7]
            layer = int(found[3] or found[8] or 0)
            if layer < depth[tower]:
                if found[2]:
                    return cls(tower, 0, name)
                if found[6]:
                    return cls(tower, 2 * depth[tower] + 1, name)
                if found[8]:
                    return cls(tower, layer, name)
                return cls(tower, 2 * layer + (1 if found[4] == "resid_mid" else 2), name)
        raise UserError(
            f"there is no site {name!r}: choose language.embed, language.<i>.resid_mid or language.<i>.resid_post "
            f"with i from 0 to {depth['language'] - 1}, the same in vision with i from 0 to {depth['vision'] - 1}, "
            f"vision.output, or projector.<i> with i from 0 to {depth['projector'] - 1}"
        )
