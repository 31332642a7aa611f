"""The programs that the stages run, lowered for devices that need not be there.

Each takes a batch size and gives what `jax.jit` would compile for it, with the arguments' shapes and shardings alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from interp.config import BLOCK_TOKENS, N_POOL, N_SAMPLE, InterpretSection
from interp.exemplars.index_pass import device_program, shared_sae
from interp.exemplars.index_pass.running_index import IndexConfig
from launch.benches.absent_devices import DeviceFacts
from launch.benches.optimised_program import OptimisedProgram
from launch.benches.program_cost import ProgramCost, costs
from maira_jax.encoders import ENCODERS
from maira_jax.encoders.encoder import RANDOM, ImageEncoder
from maira_jax.generation import decode
from maira_jax.generation.stage import GenerateSection
from maira_jax.model import sharding
from maira_jax.model.config import Maira2Config, published
from maira_jax.model.layers import Params
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from sae import mesh as sae_mesh
from sae.activations import harvest
from sae.activations.batch_size import DEFAULT_BATCH_SIZE
from sae.activations.config import HarvestSection
from sae.activations.images import harvester
from sae.autoencoder import Sae
from sae.training.config import CHUNK_STEPS, MAX_MATRIX, SaeConfig, SaeSection, TrainConfig, TrainSection
from sae.training.trainer import Trainer
from steer.config import SteerSection
from steer.program import decode as sweep

_EOS_ID = 2


def model_config(checkpoint: str) -> Maira2Config:
    """That of the checkpoint in this folder, or the published one if there is none."""
    directory = Path(checkpoint).expanduser()
    return Maira2Config.from_dir(directory) if (directory / "config.json").is_file() else published()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the programs are lowered for.

    Attributes:
      config: the whole configuration.
      model: the model's configuration.
      mesh: the devices of one host, which run the model.
      training: all devices, which train.
      length: tokens of a padded prompt.
      images: images of a study.
    """

    config: ConfigDict
    model: Maira2Config
    mesh: Mesh
    training: Mesh
    length: int = 3200
    images: int = 2

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        devices: Sequence[jax.Device],
        local: Sequence[jax.Device],
        mesh: tuple[int, ...],
        memory: int,
    ) -> "Setting":
        """The programs of a configuration.

        Args:
          config: the configuration.
          devices: all devices, which train.
          local: those of one host, which run the model.
          mesh: devices along the batch and along each layer; (): as the stages choose them. Training takes those of
            all hosts along the batch.
          memory: bytes of each device.
        """
        cfg, dtype = model_config(config.model.checkpoint), jnp.dtype(config.model.dtype)

        def nbytes(on: AbstractMesh) -> int:
            return sharding.bytes_per_device(
                sharding.with_weights(sharding.of_params(cfg, on, dtype), config.model.weights)
            )

        shape = mesh or sharding.chosen_mesh(cfg, nbytes, None, len(local), memory)
        hosts, feature = len(devices) // len(local), shape[1] if mesh else 1
        training = (hosts * shape[0] * shape[1] // feature, feature)
        return cls(
            config,
            cfg,
            sharding.make_mesh((shape[0], shape[1]), devices=local),
            sharding.make_mesh(training, (sae_mesh.DATA, sae_mesh.FEATURE), devices=devices),
        )

    def trained_on(self, mesh: tuple[int, int]) -> "Setting":
        """This one, with all devices along the batch and the features as in `mesh` where they train."""
        on = sharding.make_mesh(mesh, (sae_mesh.DATA, sae_mesh.FEATURE), devices=list(self.training.devices.flat))
        return dataclasses.replace(self, training=on)

    def array(self, shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
        """The shape and place of an argument whose axes lie along these axes of the mesh."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, P(*axes)))

    def params(self, stop: Site | None = None) -> Any:
        """The model's parameters, as far as a pass up to the site needs them."""
        return traverse_util.unflatten_dict(
            sharding.with_weights(
                sharding.of_params(self.model, self.mesh, self.dtype, stop), self.config.model.weights
            )
        )

    @property
    def harvested(self) -> Site:
        """The site that the configuration harvests."""
        return Site.parse(HarvestSection.of(self.config).site, self.model)

    @property
    def dtype(self) -> Any:
        """The type of the model's parameters."""
        return jnp.dtype(self.config.model.dtype)

    def prompts(self, batch: int) -> tuple[Any, Any, Any]:
        """Tokens, mask and pixels."""
        size = self.model.vision.image_size
        return (
            self.array((batch, self.length), np.int32, "data"),
            self.array((batch, self.length), bool, "data"),
            self.array((batch, self.images, size, size, 3), np.float32, "data"),
        )


def _on_mesh(lower: Callable[[Setting, int], jax.stages.Lowered]) -> Callable[[Setting, int], jax.stages.Lowered]:
    """Lowers a program of the model under its mesh, as the stages run it."""

    @functools.wraps(lower)
    def lowered(setting: Setting, batch: int) -> jax.stages.Lowered:
        with jax.set_mesh(setting.mesh):
            return lower(setting, batch)

    return lowered


@_on_mesh
def _harvest(setting: Setting, batch: int) -> jax.stages.Lowered:
    """With images that no study shares, and every token kept."""
    section, site = HarvestSection.of(setting.config), setting.harvested
    tokens, mask, pixels = setting.prompts(batch)
    groups = setting.mesh.shape["data"]
    given = (
        tokens,
        mask,
        setting.array((batch * setting.images, *pixels.shape[2:]), np.float32, "data"),
        setting.array((batch, setting.images), np.int32, "data"),
        setting.array((groups, batch // groups * setting.length), np.int32, "data"),
    )
    return harvest.kept_activations.lower(setting.params(site), setting.model, site, section.dtype, *given)


@_on_mesh
def _encode(setting: Setting, batch: int) -> jax.stages.Lowered:
    """The encoder that the configuration harvests, or MedCLIP's, with the sizes of its random weights."""
    section = HarvestSection.of(setting.config)
    kind = ENCODERS.get(section.encoder or "medclip_resnet50")
    encoders: list[ImageEncoder] = []

    def drawn() -> Params:
        loaded = kind.load(RANDOM, Path(), (1, 1), seed=0)
        encoders.append(loaded.encoder)
        return loaded.params

    params = jax.tree.map(lambda leaf: setting.array(leaf.shape, leaf.dtype), jax.eval_shape(drawn))
    encoder, levels = encoders[0].after(section.block), setting.array((256, 3), np.float32)
    squares = setting.array((batch, encoder.size, encoder.size), np.uint8, "data")
    rows = encoder.chosen_rows(section.rows)
    return harvester.encoded_rows.lower(params, encoder, rows, section.dtype, levels, squares)


def _unstacked(setting: Setting) -> Any:
    """The parameters as prefill and decoding take them: `maira2.unstacked`."""
    params = setting.params()

    def layer(leaf: jax.ShapeDtypeStruct) -> Any:
        return setting.array(leaf.shape[1:], leaf.dtype, *leaf.sharding.spec[1:])

    one = jax.tree.map(layer, params["language"]["layers"])
    layers = tuple(one for _ in range(setting.model.text.num_hidden_layers))
    return params | {"language": params["language"] | {"layers": layers}}


@_on_mesh
def _generate(setting: Setting, batch: int) -> jax.stages.Lowered:
    section = GenerateSection.of(setting.config)
    return decode.generate.lower(
        _unstacked(setting),
        setting.model,
        *setting.prompts(batch),
        max_new_tokens=section.max_new_tokens or 300,
        eos_id=_EOS_ID,
    )


def _shape(setting: Setting) -> sweep.SweepShape:
    section = SteerSection.of(setting.config)
    return sweep.SweepShape(slots=section.batch_rows, max_new_tokens=section.max_new_tokens, eos_id=_EOS_ID)


@_on_mesh
def _steer_prefill(setting: Setting, batch: int) -> jax.stages.Lowered:
    tokens, mask, pixels = setting.prompts(batch)
    return sweep.prefill.lower(_unstacked(setting), setting.model, _shape(setting), tokens, mask, pixels, mask)


def sweep_arguments(setting: Setting, batch: int) -> tuple[Any, Any, Any]:
    """The prompts, the rows and the state of a sweep over `batch` studies."""
    params, shape = _unstacked(setting), _shape(setting)
    tokens, mask, pixels = setting.prompts(batch)
    prompts = jax.eval_shape(
        lambda *arrays: sweep.prefill(params, setting.model, shape, *arrays), tokens, mask, pixels, mask
    )
    section = SteerSection.of(setting.config)
    n = 1 + len(section.nonzero_strengths) * len(section.methods) * section.top
    rows = sweep.SteeredRows(
        Edits(
            setting.array((n,), np.int32),
            setting.array((n, setting.model.text.hidden_size), setting.dtype),
            setting.array((n,), np.float32),
        ),
        setting.array((), bool),
        setting.array((batch,), np.int32),
    )
    state = jax.eval_shape(lambda prompts, rows: sweep.begin(setting.model, shape, prompts, rows), prompts, rows)
    prompts, state = jax.tree.map(
        lambda leaf: setting.array(leaf.shape, leaf.dtype, *sweep.partition(leaf)), (prompts, state)
    )
    return prompts, rows, state


@_on_mesh
def steer_begin(setting: Setting, batch: int) -> jax.stages.Lowered:
    """The program that makes the state of `sweep_arguments`."""
    prompts, rows, _ = sweep_arguments(setting, batch)
    return sweep.begin.lower(setting.model, _shape(setting), prompts, rows)


@_on_mesh
def _steer_decode(setting: Setting, batch: int) -> jax.stages.Lowered:
    arguments = sweep_arguments(setting, batch)
    steps = setting.array((), np.int32)
    return sweep.advance.lower(_unstacked(setting), setting.model, _shape(setting), *arguments, steps)


def _train(setting: Setting, batch: int) -> jax.stages.Lowered:
    section = TrainSection.parse(setting.config.train.to_dict() | {"batch_size": batch})
    sae = SaeConfig.resolve(SaeSection.of(setting.config), setting.model.text.hidden_size, section.preset)
    train = TrainConfig.resolve(section, sae, seed=0, mesh=setting.training.devices.shape)
    trainer = Trainer(sae, train, devices=list(setting.training.devices.flat))
    scale = jax.ShapeDtypeStruct((), np.float32, sharding=NamedSharding(setting.training, P()))
    return trainer.chunk.lower(trainer.abstract_state(), trainer.abstract_batches(CHUNK_STEPS), scale)


def _exemplars(setting: Setting, batch: int) -> jax.stages.Lowered:
    interpret = InterpretSection.of(setting.config)
    sizes = IndexConfig(interpret.n_top, N_SAMPLE, N_POOL, block_tokens=batch, seed=0)
    section, width = SaeSection.of(setting.config), setting.model.text.hidden_size
    n_features = int(section.expansion * width)
    devices = list(setting.mesh.devices.flat)
    mesh = shared_sae.feature_mesh(devices, n_features)
    weights: Any = {"W_enc": jax.ShapeDtypeStruct((width, n_features), np.float32)}
    sae = Sae(weights, 0.0, section.k, (n_features,))
    route = device_program.suited_route(devices, sae, sizes, interpret.context_length)
    arguments = device_program.abstract_arguments(mesh, sizes, width, n_features)
    return device_program.add_block.lower(*arguments, cfg=sizes, top_k=None, route=route, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """A program of a stage.

    Attributes:
      field: the field of the configuration that sets its batch; empty where the batch is a block of `BLOCK_TOKENS`.
      lower: gives the program for a batch.
      trains: whether it runs on the devices that train, several steps a call.
      to_site: whether the model runs up to the harvested site alone.
      multiple: what batches are tried in multiples of, on each device along the data axis.
      default: the batch where the configuration leaves it open.
      of_model: whether it holds the language model.
    """

    field: str
    lower: Callable[[Setting, int], jax.stages.Lowered]
    trains: bool = False
    to_site: bool = False
    multiple: int = 1
    default: int = DEFAULT_BATCH_SIZE
    of_model: bool = True

    def costs(self, program: OptimisedProgram, facts: DeviceFacts) -> tuple[ProgramCost, ProgramCost]:
        """The cost of one call, of which a training step is a part, and that of a token, if it writes any."""
        call, token = costs(program, facts)
        return (call.share(CHUNK_STEPS), ProgramCost()) if self.trains else (call, token)

    def batch(self, setting: Setting) -> int:
        """The batch that the configuration asks for."""
        if not self.field:
            return BLOCK_TOKENS
        section, name = self.field.split(".")
        return setting.config[section][name] or self.default

    def constant_bytes(self, setting: Setting) -> int:
        """Bytes of a device's memory that hold the model, whatever the batch."""
        if self.trains or not self.field or not self.of_model:
            return 0
        return sharding.bytes_per_device(setting.params(setting.harvested if self.to_site else None))

    def limit(self, setting: Setting) -> int:
        """The largest batch that the stage takes, whatever the memory."""
        if not self.field:
            return BLOCK_TOKENS
        expanded = setting.config.sae.expansion * setting.model.text.hidden_size
        return int(MAX_MATRIX // expanded) if self.trains else 10_000

    def mesh(self, setting: Setting) -> Mesh:
        """The devices that it runs on."""
        return setting.training if self.trains else setting.mesh


PROGRAMS = {
    "harvest": StageProgram("harvest.batch_size", _harvest, to_site=True),
    "encode": StageProgram("harvest.batch_size", _encode, multiple=16, default=256, of_model=False),
    "generate": StageProgram("generate.batch_size", _generate),
    "steer_prefill": StageProgram("steer.batch_studies", _steer_prefill),
    "steer_decode": StageProgram("steer.batch_studies", _steer_decode),
    "train": StageProgram("train.batch_size", _train, trains=True, multiple=1024),
    "exemplars": StageProgram("", _exemplars, multiple=BLOCK_TOKENS),
}
