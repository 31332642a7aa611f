"""docs/reference/files.md has the columns that the code declares."""

from docs import files_page


def test_the_page_is_what_the_schemas_say():
    written = files_page.PAGE.read_text(encoding="utf-8")
    assert files_page.page(written) == written, "run python -m docs.files_page"
    assert written.count(files_page.START) == 1
