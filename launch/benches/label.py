"""Wall time and peak memory of `launch.label` on made data: MedSAE's measures, their bootstrap, and k-sparse probing.

An image is an embedding of labels and noise, a patient has one to three images, and the autoencoder has random
directions, a few of which are those of labels, with a threshold that leaves `--density` of the activations. The passes
over the store, the measures of all bases by both rules, 1,000 resamples and all probes are counted; making the data is
not.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from configs import base
from interp.medsae import stage
from launch.benches import child_process
from maira_jax.run.stages.stage import Stage
from sae.activations.store import HELD_OUT, TRAIN, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae

_NAME = "label"


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog=f"launch.bench {_NAME}", description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--n_features", type=int, default=8192)
    parser.add_argument("--d_model", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--labels", type=int, default=14)
    parser.add_argument("--density", type=float, default=0.01, help="share of the activations above the threshold")
    parser.add_argument("--folder", default=None, help="where the data are made; the system's default if left out")
    parser.add_argument("--child", nargs=2, metavar=("WHO", "WORKDIR"), help="of the benchmark itself")
    arguments = parser.parse_args(options)
    if arguments.child:
        print(json.dumps(_measured(Path(arguments.child[1]))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _make(Path(folder), arguments)
        print(json.dumps(vars(arguments) | child_process.measured(_NAME, (), "ours", folder)))


def _measured(workdir: Path) -> dict[str, float]:
    start, start_cpu = time.perf_counter(), time.process_time()
    stage.run(base.get_config(), workdir)
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    return found | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _make(workdir: Path, arguments: argparse.Namespace) -> None:
    """Writes finished `activations` and `sae` stages."""
    n, d, n_labels = arguments.images, arguments.d_model, arguments.labels
    rng = np.random.default_rng(0)
    value = rng.random((n, n_labels)) < rng.uniform(0.02, 0.3, n_labels)
    directions = rng.normal(size=(arguments.n_features, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = (value @ directions[:n_labels] * 2 + rng.normal(size=(n, d)) / np.sqrt(d) * 3).astype(np.float32)
    patient = np.sort(rng.integers(0, n // 2, n))
    threshold = float(np.quantile(x[:2000] @ directions.T, 1 - arguments.density))
    with Stage(workdir, "activations", {}) as made:
        tokens = TokenRows.without_tokens(n, 1)
        studies = pa.table(
            {
                "study_id": [f"image-{i}" for i in range(n)],
                "patient_id": [f"patient-{i}" for i in patient],
                "split": [HELD_OUT if i % 10 == 0 else TRAIN for i in patient],
                "labels": [json.dumps({f"label {c}": bool(v) for c, v in enumerate(row)}) for row in value],
                "start": np.arange(n),
                "stop": np.arange(1, n + 1),
            }
        )
        writer = StoreWriter(made.dir, StoreLayout.of(n, d, "float32"), tokens, studies, {"arrays": {}})
        for shard in writer.missing():
            writer.write(shard, x[slice(*writer.layout.rows(shard))])
        made.finish(writer.counts())
    with Stage(workdir, "sae", {}) as made:
        zeros = {"b_enc": np.zeros(arguments.n_features, np.float32), "b_dec": np.zeros(d, np.float32)}
        params = {
            name: jnp.asarray(part) for name, part in ({"W_enc": directions.T, "W_dec": directions} | zeros).items()
        }
        save_sae(
            made.dir, Sae(params, threshold, round(arguments.density * arguments.n_features), (arguments.n_features,))
        )
        made.finish({})
