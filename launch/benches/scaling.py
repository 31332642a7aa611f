"""What activations of MAIRA-2 and an autoencoder on them cost at size: memory, rates, hours and dollars.

python -m launch.bench scaling --device=h100 --price=h100=2.50

The programs of the harvest and of a training step are compiled for devices that are not there, as `launch.bench fits`
does, and give the memory, the arithmetic, the bytes between devices and the time of one call. From these follow the
hours of a run over a number of tokens. Reading images, feeding a training step and writing checkpoints are left out.

A collection of studies gives a number of tokens, and training draws them again once it has seen all. A store is filled
once, and every later epoch reads it. Live, the model runs again for every token that training sees, on the devices that
train, so the two times add up.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence

from launch.benches import fits
from launch.benches.absent_devices import NAMES, DeviceFacts
from launch.benches.stage_programs import PROGRAMS, Setting
from maira_jax.errors import UserError
from sae.activations.config import HarvestSection
from steer.run_costs import PRICES

# Of each device: the configuration whose programs are compiled, and the devices along the batch and the features that
# train; None: as the command chooses them. v5p:4x4x4 is what Google calls v5p-128: it counts two cores to a chip.
SETUPS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "h100": ("configs/maira2.py", None),
    "8xh100": ("configs/maira2_8xh100.py", None),
    "v5e:4x4": ("configs/maira2_pod.py", (4, 4)),
    "v5p:4x4x4": ("configs/maira2_pod.py", (16, 4)),
}
# Mean tokens of a study with a frontal and a lateral image that each filter keeps, over the 3,337 reports of Indiana
# University's collection.
TOKENS_PER_STUDY = {"paper": 89, "all": 2908}
MIMIC_CXR = 227_835  # studies of MIMIC-CXR 2.0.0


@dataclasses.dataclass(frozen=True)
class CompiledRate:
    """What a stage's program does, on all hosts together.

    Attributes:
      devices: number of devices.
      mesh: devices along the batch and along the other axis, of a host where hosts work alone.
      rows: studies or tokens of one call, of all hosts.
      seconds: time of a call.
      peak: bytes of memory that each device needs.
      memory: bytes that it has.
      flops: operations of the matrix products for each row.
      payload: bytes that each device reduces, gathers or sends in a call.
    """

    devices: int
    mesh: tuple[int, ...]
    rows: int
    seconds: float
    peak: int
    memory: int
    flops: float
    payload: int

    @property
    def per_second(self) -> float:
        """Rows in a second."""
        return self.rows / self.seconds


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a run over a number of tokens takes.

    Attributes:
      tokens: what training sees, each as often as it is drawn.
      stored: different ones, which a store holds.
      nbytes: size of the store.
      read: bytes that training reads from it in a second.
      harvest: hours in which the store is filled.
      train: hours of the training steps.
      live: hours of a training without a store.
      price: dollars for an hour of all devices.
    """

    tokens: float
    stored: float
    nbytes: float
    read: float
    harvest: float
    train: float
    live: float
    price: float


def main(options: Sequence[str]) -> None:
    """Prints two tables in Markdown: the programs of each device, and what runs take.

    Raises:
      UserError: a program does not fit, a compiler is missing, or the command line is not understood.
    """
    parser = argparse.ArgumentParser(
        prog="launch.bench scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=",".join(SETUPS), help=f"some of {NAMES}; default: %(default)s")
    parser.add_argument("--config", help="FILE or FILE:ARG for all devices; default: one that is meant for each")
    parser.add_argument("--tokens", default="1e8,1e9", help="what training sees; default: %(default)s")
    parser.add_argument("--studies", type=int, default=MIMIC_CXR, help="of the collection; default: MIMIC-CXR's")
    parser.add_argument("--price", default="", help="KIND=DOLLARS,... for an hour of a device, of h100, v5e, v5p")
    arguments = parser.parse_args(options)
    prices, tokens = _prices(arguments.price), [float(number) for number in arguments.tokens.split(",")]
    compiled = []
    for device in arguments.device.split(","):
        config, training = SETUPS.get(device, ("configs/maira2_pod.py", None))
        setting, facts = fits.setting_of(device, arguments.config or config)
        if training is not None and arguments.config is None:
            setting = setting.trained_on(training)
        rates = [compiled_rate(name, setting, facts) for name in ("harvest", "train")]
        compiled.append((device, *rates, row_bytes(setting)))
    print(_PROGRAM_HEAD)
    for device, harvest, train, _ in compiled:
        print(_program_line(device, "harvest", "studies", harvest))
        print(_program_line("", "train", "tokens", train))
    print(f"\n{_RUN_HEAD}")
    for device, harvest, train, nbytes in compiled:
        price = train.devices * prices[device.partition(":")[0].rpartition("x")[2]]
        for token_filter, kept in TOKENS_PER_STUDY.items():
            for count in tokens:
                cost = run_cost(harvest, train, count, kept, arguments.studies, nbytes, price)
                print(_run_line(device, token_filter, cost))


def _prices(flag: str) -> Mapping[str, float]:
    prices = dict(PRICES)
    for part in filter(None, flag.split(",")):
        kind, _, dollars = part.partition("=")
        if kind not in PRICES or re.fullmatch(r"\d+(\.\d+)?", dollars) is None:
            raise UserError(
                f"--price={part} is not KIND=DOLLARS: give KIND from {', '.join(PRICES)}, such as h100=2.50"
            )
        prices[kind] = float(dollars)
    return prices


def row_bytes(setting: Setting) -> int:
    """Bytes of a token in the store."""
    itemsize = {"float32": 4, "bfloat16": 2}[HarvestSection.of(setting.config).dtype]
    return setting.model.text.hidden_size * itemsize


def compiled_rate(name: str, setting: Setting, facts: DeviceFacts) -> CompiledRate:
    """What the program of the harvest or of a training step does, with the configuration's batch.

    Raises:
      UserError: it does not fit.
    """
    stage = PROGRAMS[name]
    batch, mesh = stage.batch(setting), stage.mesh(setting).devices
    compiled = fits.compile_stage(stage, setting, batch)
    if compiled.program is None or compiled.peak > facts.memory:
        raise UserError(f"{name} does not fit with {stage.field} = {batch}: python -m launch.bench fits says what does")
    call, _ = stage.costs(compiled.program, facts)
    hosts = setting.training.devices.size // mesh.size
    return CompiledRate(
        devices=mesh.size * hosts,
        mesh=mesh.shape,
        rows=batch * hosts,
        seconds=call.seconds,
        peak=compiled.peak,
        memory=facts.memory,
        flops=call.flops * mesh.size / batch,
        payload=call.payload,
    )


def run_cost(
    harvest: CompiledRate, train: CompiledRate, tokens: float, kept: int, studies: int, nbytes: int, price: float
) -> RunCost:
    """What a run takes.

    Args:
      harvest: the rate in studies.
      train: the rate in tokens.
      tokens: what training sees.
      kept: tokens of a study.
      studies: of the collection.
      nbytes: bytes of a token.
      price: dollars for an hour of all devices.
    """
    stored = min(tokens, studies * kept)
    training = tokens / train.per_second / 3600

    def model_hours(of: float) -> float:
        return of / kept / harvest.per_second / 3600

    read, live = train.per_second * nbytes, model_hours(tokens) + training
    return RunCost(tokens, stored, stored * nbytes, read, model_hours(stored), training, live, price)


_PROGRAM_HEAD = (
    "| device | program | mesh | a call | memory of a device | time of a call | a second | matrix products of one | "
    "between devices |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_RUN_HEAD = (
    "| device | filter | tokens | store | reads from it | fill it | train | both | another training | live |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def _program_line(device: str, name: str, rows: str, rate: CompiledRate) -> str:
    cells = (
        device,
        f"`{name}`",
        ",".join(map(str, rate.mesh)),
        f"{rate.rows:,} {rows}",
        f"{rate.peak / 2**30:.1f} of {rate.memory / 2**30:.1f} GiB",
        f"{1e3 * rate.seconds:,.1f} ms",
        f"{rate.per_second:,.0f} {rows}",
        f"{rate.flops / 1e12:,.1f} TFLOP" if rate.flops > 1e12 else f"{rate.flops / 1e9:,.2f} GFLOP",
        f"{rate.payload / 1e6:,.0f} MB",
    )
    return f"| {' | '.join(cells)} |"


def _run_line(device: str, token_filter: str, cost: RunCost) -> str:
    def priced(hours: float) -> str:
        return f"{hours:,.2f} h, ${hours * cost.price:,.2f}"

    cells = (
        device,
        f"`{token_filter}`",
        f"{cost.tokens / 1e6:,.0f} M",
        f"{cost.nbytes / 1e12:.2f} TB",
        f"{cost.read / 1e9:.1f} GB/s",
        f"{cost.harvest:,.2f} h",
        f"{cost.train:,.2f} h",
        priced(cost.harvest + cost.train),
        priced(cost.train),
        priced(cost.live),
    )
    return f"| {' | '.join(cells)} |"
