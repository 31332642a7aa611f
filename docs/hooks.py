"""Generates the page of all configuration fields from the sections that declare them."""

from typing import Any

from configs import base

_PAGE = "reference/configuration.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Appends a table for each section to the configuration page; other pages stay as they are."""
    return markdown + "".join(map(_table, base.SECTIONS)) if page.file.src_path == _PAGE else markdown


def _table(section: Any) -> str:
    rows = "".join(
        f"| `{name}` | `{value!r}` | {meaning.replace('|', '/')} |\n"
        for name, value, meaning in section.explained(base.get_config())
    )
    doc = (section.__doc__ or "").strip().split("\n\n")[0]
    return f"\n## {section.section or 'top level'}\n\n{doc}\n\n| field | default | meaning |\n|---|---|---|\n{rows}"
