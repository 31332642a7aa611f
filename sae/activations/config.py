"""The `harvest` section of the configuration: which activations are stored, and how."""

from typing import Any, Literal

from maira_jax.encoders import ENCODERS
from maira_jax.encoders.encoder import IMAGE_ROWS
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import TOKEN_FILTERS
from maira_jax.run.config import Section, setting

# "store": the activations of `WORKDIR/activations`; "model": those of the model, computed when they are read.
ActivationSource = Literal["store", "model"]


# Fields that decide what is stored of an image encoder.
_OF_ENCODER = ("encoder", "weights", "rows", "block", "held_out_fraction", "batch_size", "dtype")


class HarvestSection(Section, name="harvest"):
    """Which activations are stored: those of a model at one site or of an image encoder, or the user's own arrays."""

    site: str = setting("language.15.resid_post", "Site of the language model whose activations are stored.")
    token_filter: str = setting(
        "paper",
        "Which tokens are stored. paper: all but inner image tokens and boilerplate, as in arXiv 2507.12950; findings: "
        "those of the findings; all; frontal: those of the current frontal image; text_and_frontal: those of "
        "paper, and those of frontal.",
        choices=lambda: TOKEN_FILTERS,
    )
    held_out_fraction: float = setting(0.15, "Fraction of the patients whose studies no training sees.", ge=0, lt=1)
    # Decides: a study is padded to the length of its batch, and sums over other shapes differ in their last bits.
    batch_size: int | None = setting(
        None,
        "Studies (of an encoder, images) in one pass of the model; None: as many as keep the devices busy and fit in "
        "their memory, 16 on a CPU. What a harvest begins with is kept when it resumes, on other devices too.",
        ge=1,
    )
    readers: int | None = setting(
        None,
        "Processes that read and resize image files ahead of the model; 0: threads of the process that runs it; None: "
        "one per processor.",
        ge=0,
        decides=False,
    )
    remove_studies: bool = setting(
        False,
        "Whether activations that are there are removed where their studies are not among the readable ones any more.",
        decides=False,
    )
    dtype: Literal["float32", "bfloat16"] = setting("float32", "Dtype of the stored activations.")
    encoder: str = setting(
        "",
        "Image encoder whose output is stored, one row per frontal image or patch; empty: the language model at "
        f"harvest.site. One of: {', '.join(ENCODERS.names())}.",
    )
    weights: str = setting(
        "",
        "File or folder of the encoder's checkpoint; 'random': weights drawn from the seed, as a control. "
        "maira2_vision reads WORKDIR/model where it is empty.",
    )
    rows: str | None = setting(
        None,
        "What is stored of an image: the encoder's embedding, its class token, the mean of its patches, or each patch; "
        "None: the embedding of MedCLIP, the class token of the others.",
        choices=lambda: IMAGE_ROWS,
    )
    block: int | None = setting(
        None,
        "Block of an encoder's vision transformer, from 0, after which the rows are taken; None: its output. Of "
        "rad_dino and maira2_vision. The earlier the block, the more a patch's row is of that patch alone.",
        ge=0,
    )
    arrays: tuple[str, ...] = setting(
        (), "Files of activations to store instead of a model's: .npy, .safetensors, .zarr or .parquet."
    )
    column: str = setting(
        "", "Tensor of the .safetensors files, or column of the .parquet files, that holds them; empty: the only one."
    )
    table: str = setting(
        "", "A .parquet or .csv with one row per study of the arrays: study_id, patient_id, split and labels."
    )

    def check(self) -> None:
        if self.encoder:
            ENCODERS.get(self.encoder)
        if self.encoder and self.arrays:
            raise UserError("harvest.encoder and harvest.arrays are both given: leave one empty")
        if self.block is not None and not self.encoder:
            raise UserError("harvest.block is of an image encoder, and none is given: set harvest.site instead")

    def of_model(self) -> dict[str, Any]:
        """The fields that decide what is stored of the language model."""
        others = {"encoder", "weights", "rows", "block"}
        return {name: value for name, value in self.deciding().items() if name not in others}

    def of_encoder(self) -> dict[str, Any]:
        """The fields that decide what is stored of an image encoder."""
        return {name: getattr(self, name) for name in _OF_ENCODER}
