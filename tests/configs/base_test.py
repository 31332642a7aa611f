"""Every configuration file is accepted by the sections that read it."""

import importlib
import pkgutil

import pytest

import configs
from configs import base, embeddings
from maira_jax.errors import UserError
from maira_jax.run.config import RunSection
from maira_jax.studies.readers import READERS

CONFIGS = [
    importlib.import_module(f"configs.{module.name}")
    for module in pkgutil.iter_modules(configs.__path__)
    if module.name != "base"
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
@pytest.mark.parametrize("section", base.SECTIONS, ids=lambda section: section.section or "seed")
def test_every_section_accepts_its_values(config, section):
    values = config.get_config()
    if section.section == "judge":
        values.judge.model = "NAME"  # which the user names
    if section is base.StudiesSection:
        section = READERS.get(values.studies.source)
        if config is embeddings:
            return  # it reads arrays, not studies
    section.of(values)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_no_file_adds_a_section(config):
    sections = {section.section for section in base.SECTIONS if section.section}
    assert set(config.get_config()) == sections | set(RunSection.model_fields)


def test_a_reader_names_its_own_fields():
    assert set(base.studies("mimic_cxr", path="somewhere")) == {
        "source",
        "n",
        "balanced",
        "on_error",
        "path",
        "uncertain",
        "reports",
        "split",
    }
    with pytest.raises(UserError, match="studies.source is 'elsewhere'"):
        base.studies("elsewhere")
