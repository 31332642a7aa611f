"""The `sweep` section of the configuration, and the members of a sweep."""

import itertools
from typing import Any, NamedTuple

from maira_jax.errors import UserError
from maira_jax.run.config import Section, setting
from sae.training.config import SaeConfig, SaeSection, TrainConfig, TrainSection
from sae.variants import VARIANTS


class SweepSection(Section, name="sweep"):
    """Values of which a sweep trains all combinations; where there are none, a field is as `sae` and `train` say."""

    expansions: tuple[float, ...] = setting((), "Values of sae.expansion.", gt=0)
    learning_rates: tuple[float, ...] = setting((), "Values of train.lr.", gt=0)
    ks: tuple[int, ...] = setting((), "Values of sae.k.", ge=1)
    l1s: tuple[float, ...] = setting((), "Values of sae.l1.", ge=0)
    max_l0: float = setting(
        32.0, "Most features per token, rounded, of the member that becomes WORKDIR/sae; see launch.sweep.", gt=0
    )


class SweepMember(NamedTuple):
    """One autoencoder of a sweep, as `launch.train` would train it alone.

    Attributes:
      sae: its `sae` section, without companions.
      train: its `train` section.
    """

    sae: SaeSection
    train: TrainSection

    def resolved(self, d_model: int, seed: int, mesh: tuple[int, ...]) -> tuple[SaeConfig, TrainConfig]:
        """The autoencoder and its training, for activations of width `d_model`.

        Raises:
          UserError: fields do not go together.
        """
        sae = SaeConfig.resolve(self.sae, d_model, self.train.preset)
        return sae, TrainConfig.resolve(self.train, sae, seed, mesh)


def members(sweep: SweepSection, sae: SaeSection, train: TrainSection) -> list[SweepMember]:
    """All combinations of a sweep's values, in the order of its fields, the last one fastest.

    Raises:
      UserError: there is nothing to sweep, or a field does not matter to the variant.
    """
    if sweep.ks and not VARIANTS.get(sae.kind).at_most_k:
        raise UserError(f"sweep.ks is set, but sae.kind={sae.kind!r} ignores sae.k: set sweep.l1s instead")
    values: dict[str, tuple[Any, ...]] = {
        "expansion": sweep.expansions,
        "lr": sweep.learning_rates,
        "k": sweep.ks,
        "l1": sweep.l1s,
    }
    values = {name: given for name, given in values.items() if given}
    repeated = [(name, value) for name, given in values.items() for value in given if given.count(value) > 1]
    if repeated:
        field, value = repeated[0]
        raise UserError(f"a sweep would train several members with {field} {value:g} that are the same: give it once")
    if not values:
        raise UserError("there is nothing to sweep: give sweep.expansions, learning_rates, ks or l1s several values")
    found = []
    for combination in itertools.product(*values.values()):
        fields = dict(zip(values, combination, strict=True))
        rate = {"lr": fields.pop("lr")} if "lr" in fields else {}
        own = sae.model_dump() | {"companions": {}} | fields
        found.append(SweepMember(SaeSection.parse(own), TrainSection.parse(train.model_dump() | rate)))
    return found
