"""docs/reference/files.md has the columns that the code declares."""

import pyarrow as pa

from docs import files_page


def test_the_page_is_what_the_schemas_say():
    written = files_page.PAGE.read_text(encoding="utf-8")
    assert files_page.page(written) == written, "run python -m docs.files_page"
    assert written.count(files_page.START) == 1


def test_lists_are_of_any_size():
    """pyarrow below 26 cannot read a missing list of fixed size from a parquet file."""
    kinds = [field.type for _, schema in files_page.TABLES.values() for field in schema]
    while kinds:
        kind = kinds.pop()
        assert not pa.types.is_fixed_size_list(kind)
        kinds += [kind.field(i).type for i in range(kind.num_fields)]
