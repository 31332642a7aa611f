"""Generates the page of all configuration fields from the sections that declare them."""

from typing import Any

from configs import base
from maira_jax.studies.readers import READERS

_PAGE = "reference/configuration.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Appends a table for each section to the configuration page; other pages stay as they are."""
    return (
        markdown + "".join(_chapter(section) for section in base.SECTIONS) if page.file.src_path == _PAGE else markdown
    )


def _chapter(section: Any) -> str:
    """The section's heading and table; for the studies, a table for each reader instead."""
    heading = f"\n## {section.section or 'top level'}\n\n{_doc(section)}\n\n"
    if section is not base.StudiesSection:
        return heading + _table(section, base.get_config())
    readers = {name: READERS.get(name) for name in READERS.names()}
    tables = (
        f"### {name}\n\n{_doc(reader)}\n\n{_table(reader, {'studies': base.studies(name)})}\n"
        for name, reader in readers.items()
    )
    return heading + "".join(tables)


def _doc(section: Any) -> str:
    return (section.__doc__ or "").strip().split("\n\n")[0]


def _table(section: Any, config: Any) -> str:
    rows = "".join(
        f"| `{name}` | `{value!r}` | {meaning.replace('|', '/')} |\n"
        for name, value, meaning in section.explained(config)
    )
    return f"| field | default | meaning |\n|---|---|---|\n{rows}"
