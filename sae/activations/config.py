"""The `harvest` section of the configuration: which activations are stored, and how."""

from typing import Literal

from maira_jax.inputs.tokens import TOKEN_FILTERS
from maira_jax.run.config import Section, setting

# "store": the activations of `WORKDIR/activations`; "model": those of the model, computed when they are read.
ActivationSource = Literal["store", "model"]


class HarvestSection(Section, name="harvest"):
    """Which activations are stored: those of a model at one site, or the user's own arrays."""

    site: str = setting("language.15.resid_post", "Site of the language model whose activations are stored.")
    token_filter: str = setting(
        "paper",
        "Which tokens are stored. paper: all but inner image tokens and boilerplate, as in arXiv 2507.12950; findings: "
        "those of the findings; all; frontal: those of the current frontal image.",
        choices=lambda: TOKEN_FILTERS,
    )
    held_out_fraction: float = setting(0.15, "Fraction of the patients whose studies no training sees.", ge=0, lt=1)
    # Decides: a study is padded to the length of its batch, and sums over other shapes differ in their last bits.
    batch_size: int | None = setting(
        None,
        "Studies in one pass of the model; None: as many as keep the devices busy and fit in their memory, 16 on "
        "a CPU. What a harvest begins with is kept when it resumes, on other devices too.",
        ge=1,
    )
    readers: int | None = setting(
        None,
        "Processes that read and resize image files ahead of the model; 0: threads of the process that runs it; None: "
        "one per processor.",
        ge=0,
        decides=False,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "Dtype of the stored activations.")
    arrays: tuple[str, ...] = setting(
        (), "Files of activations to store instead of a model's: .npy, .safetensors, .zarr or .parquet."
    )
    column: str = setting(
        "", "Tensor of the .safetensors files, or column of the .parquet files, that holds them; empty: the only one."
    )
    table: str = setting(
        "", "A .parquet or .csv with one row per study of the arrays: study_id, patient_id, split and labels."
    )
