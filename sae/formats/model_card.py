"""The README.md that travels with an exported autoencoder: what it is, how to load it, its metrics, its manifest."""

import json
from collections.abc import Mapping
from typing import Any

from sae.autoencoder import Sae
from sae.formats.registry import FormatWriter
from sae.variants import trained_as

# Name in metrics.json, name on the card, number format.
_METRICS = (
    ("tokens", "held-out tokens", ",d"),
    ("fvu", "fraction of variance unexplained", ".4f"),
    ("explained_variance", "explained variance", ".4f"),
    ("cosine", "cosine of activation and reconstruction", ".4f"),
    ("l0", "L0", ".2f"),
    ("dead", "dead features", ",d"),
    ("dense", "dense features (above 10 % of the tokens)", ",d"),
)
_LOSSES = (
    ("tokens", "findings tokens", ",d"),
    ("ce", "cross-entropy, original", ".4f"),
    ("ce_spliced", "cross-entropy, spliced", ".4f"),
    ("ce_mean", "cross-entropy, mean-ablated", ".4f"),
    ("ce_zero", "cross-entropy, zero-ablated", ".4f"),
    ("recovered_mean", "loss recovered, against mean ablation", ".4f"),
    ("recovered_zero", "loss recovered, against zero ablation", ".4f"),
)


def text(
    sae: Sae,
    writer: FormatWriter,
    fold_normalization: bool,
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> str:
    """The card in Markdown.

    Args:
      sae: the autoencoder.
      writer: the writer of the format that the card describes.
      fold_normalization: whether the exported autoencoder takes raw activations.
      metrics: the content of `metrics.json`.
      manifest: the manifest of the stage that trained the autoencoder.
    """
    source = sae.meta.get("source", {})
    factor = float(sae.meta.get("normalization", 1.0))
    takes = (
        "It takes raw activations; the normalisation of its training is folded into the biases and the threshold."
        if fold_normalization
        else f"It takes activations divided by {factor!r}; its features and reconstructions are divided by it, too."
    )
    variant = trained_as(sae)
    kind = variant.title if variant else "TopK" if sae.per_token else "BatchTopK"
    nested = "Matryoshka " if len(sae.group_sizes) > 1 else ""
    rows = {
        "site": source.get("site", "unknown"),
        "model": source.get("checkpoint", "unknown"),
        "tokens it was trained on": source.get("token_filter", "all"),
        "width of the activations": f"{sae.d_model:,}",
        "features": f"{sae.n_features:,} in groups of {', '.join(f'{size:,}' for size in sae.group_sizes)}",
        "k": sae.k,
        "threshold": "none" if sae.per_token else _threshold(sae),
        "normalisation factor": repr(factor),
    }
    losses = metrics.get("loss") or {}
    prefixes = [
        f"| {prefix['features']:,} | {prefix['fvu']:.4f} | {prefix['l0']:.2f} |" for prefix in metrics["prefixes"]
    ]
    parts = [
        f"---\nlibrary_name: {writer.library}\ntags:\n- sparse-autoencoder\n- feature-extraction\n---",
        f"# Sparse autoencoder ({nested}{kind}), {sae.n_features:,} features",
        _table(("", ""), rows.items()),
        takes,
        f"```python\n{writer.usage}\n```",
        "## Metrics",
        "On held-out activations:",
        _table(("metric", "value"), _values(metrics, _METRICS)),
        "\n".join(["| first features | fraction of variance unexplained | L0 |", "|---|---|---|", *prefixes]),
    ]
    if losses:
        parts += [
            "Of the model, with the activation replaced by its reconstruction:",
            _table(("metric", "value"), _values(losses, _LOSSES)),
        ]
    # Its files are those of the training's folder, hundreds with the checkpoints, and none of them is here.
    made = {name: value for name, value in manifest.items() if name != "files"}
    parts += ["## How it was made", f"```json\n{json.dumps(made, indent=2)}\n```"]
    return "\n\n".join(parts) + "\n"


def _threshold(sae: Sae) -> str:
    return repr(sae.threshold) if isinstance(sae.threshold, float) else "one per feature"


def _values(metrics: Mapping[str, Any], names: Any) -> list[tuple[str, str]]:
    return [
        (label, "not defined" if metrics[name] is None else format(metrics[name], number_format))
        for name, label, number_format in names
    ]


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows])
