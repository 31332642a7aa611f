"""What the first view of the atlas shows: facts of the run, summary, concepts, statements, labels, rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp import advantage
from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering.features import rounded
from interp.atlas.gathering.results import is_finished, json_if_finished, read_table
from interp.exemplars.corpus import is_of_images
from interp.exemplars.selection import KINDS
from maira_jax.inputs.tokens import SECTIONS
from maira_jax.run import files
from maira_jax.run.stages.stage import MANIFEST
from sae.activations.store import source_of
from sae.variants import VARIANTS

_OPTIONAL = ("export", "label", "similar")


def overview(workdir: Path, disclosure: Disclosure) -> dict[str, Any]:
    """All of the first view that is not of steering."""
    statements = workdir / "interp" / "statements.parquet"
    return {
        "kinds": list(KINDS),
        "sections": list(SECTIONS),
        "run": _run_facts(workdir),
        "summary": files.read_json(workdir / "interp" / "summary.json"),
        "concepts": read_table(workdir / "interp" / "concepts.parquet").to_pylist(),
        "statements": disclosure.texts(rounded(read_table(statements).to_pylist())) if statements.is_file() else None,
        "label": _label(workdir / "label"),
        "localize": _localize(workdir / "localize"),
    }


def compared(workdir: Path, sweep: str) -> dict[str, Any] | None:
    """The table of all measures of features and controls, with a sentence for each; None where none compares them.

    Args:
      workdir: the run directory.
      sweep: the sweep whose steering is among the measures.
    """
    found = advantage.of_run(workdir, sweep)
    return {"rows": advantage.rows(found), "sentences": advantage.sentences(found).split("\n")} if found else None


def _run_facts(workdir: Path) -> dict[str, Any]:
    """Facts for the head of the page; None where a stage's manifest does not tell."""
    source = source_of(workdir / "activations")
    names = ("activations", "sae", "interp") if is_of_images(source) else ("model", "activations", "sae", "interp")
    manifests = {name: files.read_json(workdir / name / MANIFEST) for name in names}
    activations, counts = manifests["activations"]["section"], manifests["activations"]["counts"]
    harvest, studies = activations.get("harvest", {}), activations.get("studies", {})
    metrics = workdir / "sae" / "metrics.json"
    sae = manifests["sae"]["counts"] | (files.read_json(metrics) if metrics.is_file() else {})
    kind = manifests["sae"]["section"].get("sae", {}).get("kind")  # of an imported one unknown
    if kind is not None and not VARIANTS.get(kind).at_most_k:
        sae["k"] = None  # it is in the configuration, but selects nothing
    if is_of_images(source):
        encoder = {"name": source.get("encoder", "arrays")} | {n: source.get(n) for n in ("weights", "rows", "grid")}
        read = {"model": encoder["name"], "parameters": None, "site": encoder["rows"] or "rows", "encoder": encoder}
    else:
        model = manifests["model"]
        read = {"model": model["section"].get("checkpoint"), "parameters": model["counts"].get("parameters")}
        read |= {"site": harvest.get("site"), "encoder": None}
    return read | {
        "token_filter": harvest.get("token_filter"),
        "source": studies.get("source"),
        **{name: counts.get(name) for name in ("tokens", "studies", "studies_held_out")},
        "sae": {name: sae.get(name) for name in ("n_features", "d_model", "k", "fvu", "l0", "dead", "prefixes")},
        "versions": manifests["interp"].get("versions", {}),
        "device": manifests["interp"].get("device"),
        "finished": manifests["interp"].get("end"),
        "stages": {stage: is_finished(workdir / stage) for stage in _OPTIONAL},
    }


def _label(folder: Path) -> dict[str, Any] | None:
    """MedSAE's figures of features and of raw dimensions."""
    summary: Mapping[str, Any] | None = json_if_finished(folder / "summary.json")
    if summary is None:
        return None
    return {name: rounded(summary[name]) for name in ("studies", "sections", "bases")}


def _localize(folder: Path) -> dict[str, Any] | None:
    """Where concepts are read and written, by site and section of the prompt, and the recommendation."""
    summary = json_if_finished(folder / "summary.json")
    if summary is None:
        return None
    points = [rounded(point) for point in summary["points"]]
    return {name: summary[name] for name in ("recommendation", "site", "section", "concepts")} | {"points": points}
