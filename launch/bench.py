"""Benchmarks against other libraries on this machine: python -m launch.bench NAME [options].

sae_step   tokens/s of a training step: ours, dictionary_learning's, SAELens' and sparsify's
recovery   features recovered from synthetic activations, and errors and probes on real ones: ours and two others
exemplars  tokens/s and memory of finding every feature's exemplars: ours and delphi's
steer      tokens/s and memory of a steering sweep, ours and transformers' generate with a hook
decode     time of a step of writing reports against that of a copy of its bytes: ours and transformers' generate
harvest    tokens/s of reading activations at a layer: ours and transformers with a hook
sweep      seconds of a sweep of autoencoders, and of a command for each of them
feed       tokens/s of shuffled batches from the activation store: ours, a NumPy memory map and torch's DataLoader
label      time and memory of MedSAE's measures, their intervals and probes on made data
convert    bytes/s and memory of a conversion: ours and transformers' from_pretrained and save_pretrained
checksums  seconds of harvest, train and interpret with checksums and without
fits       what each stage takes on devices that are not there, as their compilers say
scaling    memory, rates, hours and dollars of activations and an autoencoder at size, on such devices
"""

import argparse
import importlib
import sys

from maira_jax.errors import UserError
from maira_jax.run.performance.freed_memory import keep_freed_memory

NAMES = (
    "sae_step",
    "recovery",
    "sweep",
    "exemplars",
    "steer",
    "decode",
    "harvest",
    "feed",
    "label",
    "convert",
    "checksums",
    "fits",
    "scaling",
)


def main() -> int:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(
        prog="launch.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the benchmark; `NAME --help` lists them")
    arguments = parser.parse_args()
    keep_freed_memory()  # as commands do
    try:
        importlib.import_module(f"launch.benches.{arguments.name}").main(arguments.options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
