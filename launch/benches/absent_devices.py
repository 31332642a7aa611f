"""Devices that this machine lacks, for which it can compile: what they are, and their compilers.

  python -m launch.benches.absent_devices tpu gpu     # installs the compilers, 700 MB and 400 MB

The compilers stay out of the environment, in folders of their own (`folder`). With `jax_cuda13_plugin` installed JAX
looks for a GPU in every process and prints a traceback where CUDA is missing; with `libtpu` it prints warnings.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from maira_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DeviceFacts:
    """What one device of a kind has and does.

    Attributes:
      memory: bytes that a program can use.
      bandwidth: bytes per second that its memory gives or takes.
      flops: bfloat16 matrix operations per second.
      link: bytes per second that it sends to its neighbours in a collective along one axis of the mesh.
      latency: seconds that a collective takes at least.
      clock: cycles per second of a TPU, for the compiler's estimates; None for a GPU.
    """

    memory: int
    bandwidth: float
    flops: float
    link: float
    latency: float
    clock: float | None = None


# TPUs: https://cloud.google.com/tpu/docs/v5e and /v5p, memory as libtpu gives it, links both ways along one axis
# (https://jax-ml.github.io/scaling-book/tpus). H100: NVIDIA's data sheet of the SXM5 board; programs reach 85 % of its
# bandwidth and two thirds of its arithmetic, which the figures are, and 0.9 of its memory is a program's
# (XLA_PYTHON_CLIENT_MEM_FRACTION=0.9).
KINDS = {
    "v5e": DeviceFacts(int(15.75 * 2**30), 819e9, 197e12, 90e9, 2e-6, 1.5e9),
    "v5p": DeviceFacts(int(95.74 * 2**30), 2765e9, 459e12, 180e9, 2e-6, 1.75e9),
    "h100": DeviceFacts(int(0.9 * 84_942_979_072), 2.85e12, 650e12, 430e9, 20e-6),
}

# How the CUDA compiler is told of an H100, in the text form of XLA's GpuTargetConfigProto: the limits of compute
# capability 9.0 (CUDA C++ programming guide, "Compute Capabilities") and the data sheet's sizes and rates.
_CUDNN = 91_000
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""

_MODULES = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}
NAMES = "h100, 8xh100, v5e:2x2, v5e:4x4, v5p:2x2x2, ..."


def platform(name: str) -> str:
    """ "tpu" or "gpu", by a device's name."""
    return "gpu" if name.endswith("h100") else "tpu"


def folder(compiler: str) -> Path:
    """Where the compiler of a platform is looked for, next to the packages of this environment."""
    return Path(sys.prefix) / "compilers" / compiler


def missing(compiler: str) -> str | None:
    """The sentence that says how to install a platform's compiler; None where it is there."""
    if _found(compiler):
        return None
    return f"the compiler for {compiler.upper()}s is not installed: run {shlex.join(_pip(compiler))}"


def _pip(compiler: str) -> list[str]:
    target = ["--target", str(folder(compiler))]
    return [sys.executable, "-m", "pip", "install", "--no-deps", *target, *_packages(compiler)]


def _packages(compiler: str) -> list[str]:
    """Those that the installed JAX goes with."""
    if compiler == "gpu":
        return [f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt")]
    needs = importlib.metadata.requires("jax") or []
    return [need.partition(";")[0].strip() for need in needs if need.startswith("libtpu")]


def _found(compiler: str) -> bool:
    place = str(folder(compiler))
    if place not in sys.path:
        sys.path.append(place)
    importlib.invalidate_caches()
    return importlib.util.find_spec(_MODULES[compiler]) is not None


def facts(name: str) -> DeviceFacts:
    """What each device of `name` has.

    Raises:
      UserError: there is no such kind.
    """
    kind = name.partition(":")[0].rpartition("x")[2]
    if kind not in KINDS or re.fullmatch(r"(\d+x)?h100|v5e:\d+x\d+|v5p:\d+x\d+x\d+", name) is None:
        raise UserError(f"--device={name} is not known: give one of {NAMES}")
    return KINDS[kind]


def devices(name: str) -> list[jax.Device]:
    """The devices of `name`, for meshes and shardings that programs are compiled for; nothing can run on them.

    Raises:
      UserError: there is no such kind, or its compiler is not installed.
    """
    facts(name)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # read by each compiler when it is loaded; JAX has set it to 1
    if sentence := missing(platform(name)):
        raise UserError(sentence)
    if platform(name) == "gpu":
        return _gpus(int(name.removesuffix("h100").removesuffix("x") or 1))
    # Else libtpu asks the network what machine this is, and serves one process of it at a time.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--device={name} is not a slice that can be had: {error}") from error


def one_host(name: str) -> list[jax.Device]:
    """The devices of one host of `name`, as a slice of their own: a program for a part of a slice cannot be compiled.

    Raises:
      UserError: as `devices`.
    """
    every = devices(name)
    local: list[Any] = [device for device in every if device.process_index == every[0].process_index]
    if len(local) == len(every):
        return every
    kind, _, whole = name.partition(":")
    sides = [len(set(places)) for places in zip(*(device.coords for device in local), strict=True)]
    return devices(f"{kind}:{'x'.join(map(str, sides[: whole.count('x') + 1]))}")


def _gpus(count: int) -> list[jax.Device]:
    try:
        cudnn.check_cudnn_version()
    except RuntimeError:  # JAX asks this machine's library, but the program is for another one's
        cudnn.check_cudnn_version = lambda: _CUDNN

    def describe() -> topologies.TopologyDescription:
        return topologies.get_topology_desc("", "cuda", target_config=_H100, topology=f"1x1x{count}")

    try:
        return list(describe().devices)
    except NotImplementedError:  # JAX looked for its plugins before this one was to be found
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        importlib.import_module("jax_plugins.xla_cuda13").initialize()
        return list(describe().devices)


if __name__ == "__main__":
    failed = [needed for needed in sys.argv[1:] if missing(needed) and subprocess.run([*_pip(needed), "-q"]).returncode]
    sys.exit(bool(failed))
