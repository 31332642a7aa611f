"""A run directory of an image encoder whose features are known: bright and dark images, and what interpret reads."""

import json
from pathlib import Path

import ml_collections
import numpy as np
import pyarrow as pa
from scipy.stats import ortho_group

from configs import base
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.readers.registry import READERS, StudiesSection
from maira_jax.studies.study import Box, Study
from sae.activations.store import HELD_OUT, TRAIN, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae
from sae.saved import save_sae

# Features of bright images, of images with a line on the left, of every image but more so with a device, of any, none.
BRIGHT, LEFT_WITHOUT_DEVICE, DENSE, NOISE, DEAD = range(5)
N_FEATURES, D_MODEL, WIDTH, HEIGHT = 6, 8, 24, 16
N_STUDIES = 210
GRID = (2, 3)
BRIGHT_PATCH = 4  # where a feature of bright images is active


@READERS.register("bright_images")
class BrightImagesSection(StudiesSection):
    """Bright and dark images, with labels."""

    def load(self) -> list[Study]:
        rng = np.random.default_rng(0)
        studies = []
        for i in range(self.n or N_STUDIES):
            labels = {name: bool(rng.random() < 0.5) for name in ("bright", "left line", "device")}
            share = rng.uniform(0.7, 0.9) if labels["bright"] else rng.uniform(0.1, 0.3)
            image = np.where(rng.random((HEIGHT, WIDTH)) < share, 255, 0).astype(np.uint8)
            boxes = (
                (Box("bright", 0, 0.5, 1, 0.5),) if labels["bright"] else ()
            )  # what the image shares with BRIGHT_PATCH
            studies.append(Study(f"image-{i}", f"patient-{i}", frontal=image, labels=labels, boxes=boxes))
        return studies


def make_workdir(workdir: Path, patches: bool = False, **source: object) -> Path:
    """Writes finished `activations` and `sae` stages, with a row per image, or with one per patch of a `GRID`."""
    rng = np.random.default_rng(1)
    studies = BrightImagesSection(source="bright_images").load()
    n, per_image = len(studies), GRID[0] * GRID[1] if patches else 1
    has = {name: np.array([study.labels[name] for study in studies]) for name in ("bright", "left line", "device")}
    strength = np.zeros((n, per_image, N_FEATURES), np.float32)
    place = BRIGHT_PATCH if patches else 0
    strength[:, place, BRIGHT] = has["bright"] * rng.uniform(1, 3, n)
    strength[:, 0, LEFT_WITHOUT_DEVICE] = (has["left line"] & ~has["device"]) * rng.uniform(1, 3, n)
    strength[:, 0, DENSE] = rng.uniform(1, 2, n) + has["device"]
    strength[:, 0, NOISE] = (rng.random(n) < 0.4) * rng.uniform(1, 3, n)
    directions = ortho_group.rvs(D_MODEL, random_state=0)[:N_FEATURES].astype(np.float32)
    x = strength.reshape(-1, N_FEATURES) @ directions
    rows = np.arange(n + 1) * per_image
    with Stage(workdir, "activations", {}) as stage:
        tokens = TokenRows.without_tokens(n, per_image)
        table = pa.table(
            {
                "study_id": [study.study_id for study in studies],
                "patient_id": [study.patient_id for study in studies],
                "split": [HELD_OUT if i % 3 == 0 else TRAIN for i in range(n)],
                "labels": [json.dumps(study.labels) for study in studies],
                "start": rows[:-1],
                "stop": rows[1:],
            }
        )
        made_by = {
            "encoder": "toy",
            "weights": "random 0",
            "rows": "patches" if patches else "embedding",
            "view": "pad",
        }
        made_by |= {"grid": list(GRID) if patches else None}
        writer = StoreWriter(stage.dir, StoreLayout(*x.shape, "float32", 4096, 64), tokens, table, source or made_by)
        for shard in writer.missing():
            writer.write(shard, x[slice(*writer.layout.rows(shard))])
        stage.finish({"tokens": len(x), "studies": n})
    with Stage(workdir, "sae", {"sae": {"kind": "relu"}}) as stage:
        params = {
            "W_enc": directions.T,
            "b_enc": np.zeros(N_FEATURES, np.float32),
            "W_dec": directions,
            "b_dec": np.zeros(D_MODEL, np.float32),
        }
        save_sae(stage.dir, Sae(params, 0.5, 2, (N_FEATURES,)))
        stage.finish({"n_features": N_FEATURES, "d_model": D_MODEL})
    return workdir


def config(**interpret: object) -> ml_collections.ConfigDict:
    """The defaults with fewer examples, controls and resamples."""
    cfg = base.get_config()
    cfg.studies = base.studies("bright_images")
    sizes = {"n_top": 15, "n_explain": 30, "n_score": 30, "min_contexts": 10, "n_control": 4, "bootstrap": 50}
    cfg.interpret.update(sizes | interpret)
    cfg.label.update({"bootstrap": 50, "probe_seeds": 1})
    return cfg
