"""All sections of the configuration with their defaults, which every configuration file begins with and overrides.

A field is declared, with its type, default, bounds and meaning, in the section's class, in the code that reads it.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from interp.atlas.stage import AtlasSection
from interp.config import InterpretSection
from interp.import_set import ImportSetSection
from interp.llm.section import JudgeSection
from interp.medsae.similar_stage import SimilarSection
from interp.medsae.stage import LabelSection
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError, first_line
from maira_jax.generation.stage import GenerateSection
from maira_jax.phantom.pretraining.stage import PretrainSection
from maira_jax.run.config import RunSection, Section
from maira_jax.studies.readers import READERS, StudiesSection
from sae.activations.config import HarvestSection
from sae.formats.export import ExportSection
from sae.import_sae import ImportSaeSection
from sae.sweep.section import SweepSection
from sae.training.config import SaeSection, TrainSection
from steer.config import SteerSection
from steer.evaluate import EvaluateSection
from steer.faithfulness.section import FaithfulnessSection
from steer.localize.section import LocalizeSection

SECTIONS: tuple[type[Section], ...] = (
    RunSection,
    ModelSection,
    StudiesSection,
    GenerateSection,
    PretrainSection,
    HarvestSection,
    SaeSection,
    TrainSection,
    SweepSection,
    ImportSaeSection,
    ImportSetSection,
    ExportSection,
    InterpretSection,
    JudgeSection,
    LabelSection,
    SimilarSection,
    LocalizeSection,
    SteerSection,
    EvaluateSection,
    FaithfulnessSection,
    AtlasSection,
)


def get_config() -> ConfigDict:
    """The defaults of all sections; `studies` is the configuration file's to set."""
    config = ConfigDict(RunSection.defaults())
    for section in SECTIONS[1:]:
        config[section.section] = section.defaults()
    return config


def studies(source: str, **fields: Any) -> ConfigDict:
    """The `studies` section of a reader.

    Args:
      source: the reader's name.
      fields: what differs from its defaults.
    """
    section = READERS.get(source).defaults()
    section.update({"source": source} | fields)
    return section


def studies_at(data: str) -> ConfigDict:
    """The `studies` section of READER:PATH, or of the path of a manifest."""
    source, _, path = data.partition(":")
    return studies(source, path=path) if path and source in READERS.names() else studies("manifest", path=data)


def with_values(values: Mapping[str, Any]) -> ConfigDict:
    """A configuration of given values, which flags can change as they can those of a configuration file.

    Args:
      values: sections and their fields; what they leave out has its default.

    Raises:
      UserError: nobody has registered the reader of the studies, or a field or section is of another kind.
    """
    config = get_config()
    try:
        config.studies = studies(values["studies"]["source"])
        config.update(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # as ml_collections and `values` raise them
        raise UserError(f"a field of the configuration has a value of another kind ({first_line(error)})") from error
    return config
