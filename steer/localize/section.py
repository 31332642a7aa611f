"""The `localize` section of the configuration, and the places that it names."""

import dataclasses

from maira_jax.errors import UserError
from maira_jax.inputs.tokens import FRONTAL
from maira_jax.model.config import Maira2Config
from maira_jax.model.sites import Site
from maira_jax.run.config import Section, setting
from steer.config import GENERATED, PARTS, SteerSection

_OF_IMAGES = "image"  # the section of sites in front of the language model, where patches are edited


class LocalizeSection(Section, name="localize"):
    """Where concepts are read and written: which sites, tokens, concepts and studies."""

    sites: tuple[str, ...] = setting(
        (), "Sites to compare; empty: the projector's output, the embedding, and the end of every other block."
    )
    sections: tuple[str, ...] = setting(
        (FRONTAL, "indication", GENERATED),
        "Tokens that are read and edited, as in steer.positions; of generated ones the findings are read. At sites in "
        "front of the language model it is the patches of all images.",
        choices=lambda: (GENERATED, FRONTAL, *PARTS),
    )
    concepts: tuple[str, ...] = setting(
        (), "Concepts to read and write; empty: those about a finding with the most studies that have or lack it."
    )
    top: int = setting(8, "Number of concepts where localize.concepts is empty.", ge=1)
    min_studies: int = setting(
        10,
        "Concepts with fewer studies, with or without it, among those fitted or those held out are left out.",
        ge=1,
    )
    studies: int = setting(600, "Largest number of studies that are read, in the reader's order.", ge=2)
    held_out_fraction: float = setting(
        0.3, "Fraction of the patients on whose studies probes are scored and reports written.", gt=0, lt=1
    )
    k: int = setting(4, "Features of each sparse probe.", ge=1)
    autoencoder: bool = setting(
        False, "Whether features of WORKDIR/sae are read too, at the site that it was trained at."
    )
    write_studies: int = setting(12, "Held-out studies whose reports are written.", ge=2)
    strengths: tuple[float, ...] = setting(
        (1.0, 2.0),
        "How many times the difference of means is added; the best one is chosen on half of the studies.",
        gt=0,
    )
    bootstrap: int = setting(1000, "Resamples of the studies for each interval.", ge=1)
    batch_size: int = setting(16, "Studies in one pass that reads.", ge=1, decides=False)
    batch_studies: int = setting(4, "Studies whose reports are written together.", ge=1, decides=False)
    batch_rows: int = setting(
        16,
        "Reports of each study that are written together; each holds the keys and values of the whole prompt.",
        ge=1,
        decides=False,
    )
    dry_run: bool = setting(
        False, "Only say how many passes and reports there are, and how long they take.", decides=False
    )

    def check(self) -> None:
        for name in ("sections", "strengths"):
            if not getattr(self, name):
                raise UserError(f"localize.{name} is empty: name at least one")


@dataclasses.dataclass(frozen=True)
class LocalizePoint:
    """A site and the tokens that are read and edited there.

    Attributes:
      site: the site.
      section: the name of the tokens.
      depth: blocks of the language model before the site; below 0 for sites in front of it, -1 the last one.
    """

    site: Site
    section: str
    depth: int


def sites_of(section: LocalizeSection, cfg: Maira2Config) -> list[Site]:
    """The sites to compare, each once, in the order of a pass.

    Raises:
      UserError: a name is no site.
    """
    blocks = range(0, cfg.text.num_hidden_layers, 2)
    names = section.sites or (
        f"projector.{cfg.projector_n_layers - 1}",
        "language.embed",
        *(f"language.{block}.resid_post" for block in blocks),
    )
    found = {site.name: site for site in (Site.parse(name, cfg) for name in names)}
    return sorted(found.values(), key=lambda site: (site.tower == "language", site.tower == "projector", site.code))


def points_of(section: LocalizeSection, cfg: Maira2Config) -> list[LocalizePoint]:
    """Every site with every section of tokens that it has, in the order of a pass.

    Raises:
      UserError: a name is no site.
    """
    sites = sites_of(section, cfg)
    n_before = sum(site.tower != "language" for site in sites)
    points = []
    for number, site in enumerate(sites):
        if site.tower == "language":
            depth = Site.whole_blocks(site.code)
            points += [LocalizePoint(site, name, depth) for name in section.sections]
        else:
            points.append(LocalizePoint(site, _OF_IMAGES, number - n_before))
    return points


def editing(name: str, section: LocalizeSection, steer: SteerSection) -> SteerSection:
    """The section of a sweep that edits the tokens of a section of the prompt."""
    return steer.model_copy(
        update={
            "positions": (name,),
            "batch_studies": section.batch_studies,
            "batch_rows": section.batch_rows,
            "unit": "raw",
        }
    )
