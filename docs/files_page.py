"""Writes the tables of columns into docs/reference/files.md, from the schemas that the stages declare.

python -m docs.files_page
"""

from pathlib import Path

import pyarrow as pa

from interp import coverage, sets
from interp.exemplars import exemplar_table
from interp.features import concepts, table
from interp.medsae import localisation, probes, similar
from interp.medsae import stage as label
from interp.scorers import ground_truth
from maira_jax.generation import stage as generate
from maira_jax.run.columns import meaning_of
from sae.activations import store, token_rows
from sae.sweep import stage as sweep
from steer import evaluate
from steer import stage as steer
from steer.faithfulness import stage as faithfulness
from steer.localize import stage as localize
from steer.selection import choose

PAGE = Path(__file__).parent / "reference" / "files.md"
START = "<!-- From here on written by python -m docs.files_page -->\n"
# What a row is, and the columns, of each file of a run directory.
TABLES: dict[str, tuple[str, pa.Schema]] = {
    "reports/generations.jsonl": ("study", generate.LINES),
    "grounded/generations.jsonl": ("study", pa.schema([*generate.LINES, *generate.BOX_LINES])),
    "activations/tokens.parquet": ("token, image or patch", token_rows.TOKEN_SCHEMA),
    "activations/studies.parquet": ("study", store.STUDY_SCHEMA),
    "sweep/sweep.parquet": ("autoencoder", sweep.SCHEMA),
    "interp/features.parquet": ("feature", table.SCHEMA),
    "interp/controls.parquet": ("control", table.CONTROL_SCHEMA),
    "interp/exemplars.parquet": ("context of a feature", exemplar_table.SCHEMA),
    "interp/concepts.parquet": ("concept", concepts.SCHEMA),
    "interp/coverage.parquet": ("basis and concept", coverage.SCHEMA),
    "interp/statements.parquet": ("statement", ground_truth.SCHEMA),
    "interpretations/NAME/features.parquet": ("feature", sets.SCHEMA),
    "label/neurons.parquet": ("neuron", label.neuron_schema(("LABEL",))),
    "label/probing.parquet": ("basis, size, label and split", probes.SCHEMA),
    "label/localisation.parquet": ("label, image and map", localisation.SCHEMA),
    "similar/codes.parquet": ("study", similar.SCHEMA),
    "localize/sites.parquet": ("site, section and concept", localize.SCHEMA),
    "localize/generations.jsonl": ("report", steer.LINES),
    "steer/NAME/generations.jsonl": ("report", steer.LINES),
    "steer/NAME/selection.parquet": ("concept, candidate feature and rule", choose.SCHEMA),
    "steer/NAME/sets.parquet": ("direction, intended effect and feature that it sets", steer.SET_ROWS),
    "evaluation/NAME/results.parquet": ("report", evaluate.SCHEMA),
    "faithfulness/scores.parquet": ("explanation", faithfulness.SCHEMA),
}


def page(written: str) -> str:
    """The page as `written`, with the tables of columns as they are declared now."""
    return written.partition(START)[0] + START + "".join(_chapter(name, *entry) for name, entry in TABLES.items())


def _chapter(name: str, row: str, schema: pa.Schema) -> str:
    lines = [f"| `{field.name}` | {kind_of(field.type)} | {meaning_of(field)} |\n" for field in schema]
    return f"\n### {name}\n\nOne row per {row}.\n\n| column | type | meaning |\n|---|---|---|\n{''.join(lines)}"


def kind_of(kind: pa.DataType) -> str:
    """A column's type in words."""
    if pa.types.is_struct(kind):
        return "object"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {kind_of(kind.value_type)}"
    return str(kind)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
