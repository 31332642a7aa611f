"""What the stages of a run would take, counted from the configuration and a few studies before anything is run.

Times are those of the matrix products and of the weights that decoding reads, at the rates that this machine's device
reaches on one large product and one copy: what the stages cannot beat. Launching, reading images and waiting for a
language model are not counted. `launch.bench scaling` has the same for devices that are not there.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from interp.controls import CONTROLS
from interp.explainers.llm_explainer import N_EXAMPLES
from interp.llm.ledger import TYPICAL_ANSWER
from interp.llm.section import JudgeSection
from maira_jax.checkpoint.convert import checkpoint_dir
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.studies.readers import load_studies
from sae.activations.config import HarvestSection
from sae.activations.harvest_plan import make_plan
from steer.stage_words import table

COUNTED = ("convert", "generate", "harvest", "train", "export", "interpret", "steer", "evaluate", "faithfulness")
# Dollars for an hour of one device: public list prices on demand in 2026. H100: an eighth of AWS's p5.48xlarge,
# us-east-1 (https://aws.amazon.com/ec2/pricing/on-demand). TPUs: https://cloud.google.com/tpu/pricing, United States.
PRICES = {"h100": 6.88, "v5e": 1.20, "v5p": 4.20}
_KINDS = {"h100": "h100", "v5 lite": "v5e", "v5p": "v5p"}  # in the names that devices give themselves
_SAMPLE = 16  # studies whose tokens are counted
_PROMPT = 500  # tokens of a question to a language model, apart from its examples
_REPORT = 1200  # bytes of a line about a report


@dataclasses.dataclass(frozen=True)
class DeviceRates:
    """What the devices of this run reach.

    Attributes:
      n: number of devices.
      flops: operations of matrix products in a second, of each.
      bandwidth: bytes that each reads or writes in a second.
      price: dollars for an hour of all; None where it is not known.
    """

    n: int
    flops: float
    bandwidth: float
    price: float | None

    @classmethod
    def measured(cls, dtype: str) -> "DeviceRates":
        """Times a product of two matrices and a copy of one on the first device."""
        side = 1024 if jax.default_backend() == "cpu" else 8192
        x = jnp.ones((side, side), dtype)
        product, copy = (_seconds(jax.jit(work), x) for work in (lambda x: x @ x, lambda x: x + 1))
        kind = jax.devices()[0].device_kind.lower()
        price = next((PRICES[name] for part, name in _KINDS.items() if part in kind), None)
        n = jax.device_count()
        return cls(n, 2 * side**3 / product, 2 * x.nbytes / copy, None if price is None else n * price)

    def seconds(self, flops: float = 0.0, nbytes: float = 0.0) -> float:
        """The time of these operations and bytes, shared by all devices."""
        return (flops / self.flops + nbytes / self.bandwidth) / self.n


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage takes.

    Attributes:
      seconds: of the devices.
      memory: bytes of weights that the devices hold together.
      disk: bytes that it writes.
      judge: dollars for a language model.
    """

    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    judge: float = 0.0


def text(config: ConfigDict, names: Sequence[str]) -> str:
    """A table of what these stages would take.

    Raises:
      UserError: the checkpoint or the studies cannot be read.
    """
    rates = DeviceRates.measured(config.model.dtype)
    found = costs(config, rates)
    rows = [["at least", "time", "weights", "disk", "devices", "judge"]]
    for name in names:
        if name in COUNTED:
            cost = found[name]
            hours, sizes = cost.seconds / 3600, [_size(nbytes) for nbytes in (cost.memory, cost.disk)]
            dollars = "-" if rates.price is None else f"${hours * rates.price:,.2f}"
            lasts = f"{hours:,.1f} h" if hours >= 1 else f"{cost.seconds:,.0f} s"
            rows.append([name, lasts, *sizes, dollars, f"${cost.judge:,.2f}"])
    return table(rows, 1)


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:,.1f} MiB"


def costs(config: ConfigDict, rates: DeviceRates) -> Mapping[str, StageCost]:
    """What each stage of a language model's run takes, by its command."""
    folder = checkpoint_dir(config.model.checkpoint)
    model, studies = Maira2Config.from_dir(folder), _Collection.of(config, folder)
    itemsize = np.dtype(jnp.dtype(config.model.dtype)).itemsize
    layers = model.text.num_hidden_layers
    site = config.harvest.site.split(".")
    depth = int(site[1]) + 1 if site[0] == "language" and site[1].isdigit() else layers
    weights = itemsize * (_text_parameters(model, layers) + 2 * model.text.vocab_size * model.text.hidden_size)
    weights += itemsize * _image_parameters(model)
    to_site, whole = (studies.images * _image_flops(model) + studies.flops(model, n) for n in (depth, layers))
    d, width = model.text.hidden_size, model.text.hidden_size * config.sae.expansion
    trained = sum(d * (own.get("expansion") or config.sae.expansion) for own in config.sae.companions.values()) + width
    stored = studies.n * studies.kept
    steered = min(config.steer.studies, studies.n)
    directions = (len(config.steer.features) or config.steer.top) * len(config.steer.methods)
    reports = directions * len(config.steer.strengths) + 1
    calls = math.ceil(steered / config.steer.batch_studies) * math.ceil(reports / config.steer.batch_rows)
    amplified = config.faithfulness.n * len(CONTROLS.names())  # features, and all controls but one
    written = min(config.generate.studies or studies.n, studies.n)
    batches, longest = math.ceil(written / config.generate.batch_size), config.generate.max_new_tokens or 300
    steps, passes = config.train.steps * config.train.batch_size, 1 + len(CONTROLS.names())
    return {
        "convert": StageCost(rates.seconds(nbytes=2 * weights), weights, weights),
        "generate": StageCost(rates.seconds(written * whole, batches * longest * weights), weights, written * _REPORT),
        "harvest": StageCost(
            rates.seconds(studies.n * to_site),
            weights * depth / layers,
            stored * d * jnp.dtype(config.harvest.dtype).itemsize,
        ),
        # Five products of a token with a matrix of the encoder's size; weights, two moments and gradients in float32.
        "train": StageCost(rates.seconds(10.0 * d * trained * steps), 32.0 * d * trained, 32.0 * d * trained),
        "export": StageCost(disk=8 * d * width * len(config.export.to)),
        "interpret": StageCost(
            rates.seconds(2.0 * d * width * stored * passes),
            8 * d * width,
            4 * width * config.interpret.context_length * (config.interpret.n_explain + config.interpret.n_score) * 2,
            _judged_features(config, width),
        ),
        "steer": StageCost(
            rates.seconds(steered * whole, calls * config.steer.max_new_tokens * weights),
            weights,
            steered * reports * _REPORT,
        ),
        "evaluate": StageCost(
            judge=_judged_reports(config, config.evaluate.judge, min(steered, config.evaluate.judge_studies) * reports)
        ),
        "faithfulness": StageCost(
            rates.seconds(
                config.faithfulness.studies * whole,
                math.ceil(amplified / config.steer.batch_rows) * config.steer.max_new_tokens * weights,
            ),
            weights,
            amplified * _REPORT,
            _judged_reports(config, config.interpret.judge, amplified + config.faithfulness.n),
        ),
    }


@dataclasses.dataclass(frozen=True)
class _Collection:
    """The studies of a configuration: their number, and of a mean one the tokens, the stored tokens and the images."""

    n: int
    tokens: float
    kept: float
    images: float

    @classmethod
    def of(cls, config: ConfigDict, folder: Path) -> "_Collection":
        section = config.studies.copy_and_resolve_references()
        if section.n is not None:
            section.n = min(section.n, _SAMPLE)
        studies = load_studies(section)
        sample = studies[:_SAMPLE]
        plan = make_plan(sample, Tokenizer.from_dir(folder), HarvestSection.of(config))
        tokens = float(np.mean([len(request.encoded) for request in plan.requests]))
        images = float(np.mean([len(request.images) for request in plan.requests]))
        return cls(config.studies.n or len(studies), tokens, plan.n_tokens / len(sample), images)

    def flops(self, model: Maira2Config, layers: int) -> float:
        """Operations of a mean study in the first layers of the language model; half of attention is masked."""
        return 2 * self.tokens * _text_parameters(model, layers) + 2 * layers * self.tokens**2 * model.text.hidden_size


def _text_parameters(model: Maira2Config, layers: int) -> float:
    text = model.text
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    return layers * text.hidden_size * (heads * text.head_dim + 3.0 * text.intermediate_size)


def _image_parameters(model: Maira2Config) -> float:
    vision, d = model.vision, model.text.hidden_size
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    return vision.num_hidden_layers * layer + vision.hidden_size * d + (model.projector_n_layers - 1.0) * d * d


def _image_flops(model: Maira2Config) -> float:
    vision, tokens = model.vision, model.patches_per_image + 1
    return 2 * tokens * _image_parameters(model) + 4.0 * vision.num_hidden_layers * tokens**2 * vision.hidden_size


def _judged_features(config: ConfigDict, width: int) -> float:
    """Dollars for explaining and scoring all features and controls, and for the control of shuffled explanations."""
    section = config.interpret
    if section.judge != "llm":
        return 0.0
    features = len(section.features) or width
    features += len(CONTROLS.names()) * min(section.n_control, features)
    questions = 2 * section.n_score / section.n_prompt * (len(section.scorers) + 1)
    shown = section.context_length * (N_EXAMPLES + questions * section.n_prompt)
    return _dollars(config, features * (1 + questions), features * (shown + _PROMPT * (1 + questions)))


def _judged_reports(config: ConfigDict, judge: str, pairs: int) -> float:
    """Dollars for comparing pairs of reports."""
    if judge != "llm":
        return 0.0
    return _dollars(config, pairs, pairs * (_PROMPT + config.steer.max_new_tokens))


def _dollars(config: ConfigDict, requests: float, tokens: float) -> float:
    return JudgeSection.of(config).cost(tokens, requests * TYPICAL_ANSWER)


def _seconds(work: jax.stages.Wrapped, x: jax.Array) -> float:
    """The shortest of three calls, after one that compiles."""
    times = []
    work(x).block_until_ready()
    for _ in range(3):
        start = time.perf_counter()
        work(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
