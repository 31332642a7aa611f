"""The train stage: activation store in, autoencoder and its metrics out."""

import collections
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from sae import autoencoder, calibrate, data, metrics
from sae.activations import HELD_OUT, TRAIN, Store
from sae.autoencoder import Sae
from sae.checkpoint import Checkpoints, save_sae
from sae.config import SaeConfig, TrainConfig
from sae.trainer import Metrics, State, Trainer

# Batches that set the normalisation factor, as in dictionary_learning.
_SCALE_BATCHES = 100
# Chunks whose metrics may still be on their way: the host runs ahead of the device by so many.
_IN_FLIGHT = 2
_EVALUATION_BATCH = 4096


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the autoencoder that `config.sae` and `config.train` describe.

    Writes `sae/`: checkpoints, `log.jsonl` (a line a step), the finished autoencoder (`sae.checkpoint.load_sae`),
    `metrics.json` and `density.npy` (of each feature, on held-out tokens). A killed run resumes from its latest
    checkpoint and ends with the same bits.

    Returns:
      What the manifest counts.

    Raises:
      UserError: a field is out of range, the store cannot be read, or training diverges.
    """
    section = {"sae": config.sae.to_dict(), "train": config.train.to_dict(), "seed": config.seed}
    with Stage(workdir, "sae", section, inputs=("activations",)) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        store = Store.open(Path(workdir) / "activations")
        sae_config = SaeConfig.from_section(config.sae, store.d_model, config.train.preset)
        train_config = TrainConfig.from_section(config.train, sae_config, config.seed)
        trainer = Trainer(sae_config, train_config)
        rows = store.rows_of(TRAIN)
        state, scale = _train(trainer, store, rows, stage.dir)
        sae = _finish(trainer, state, scale, store, rows)
        measured, density = metrics.evaluate(sae, data.sequential(store, store.rows_of(HELD_OUT), _EVALUATION_BATCH))
        save_sae(stage.dir, sae)
        with files.atomic_path(stage.dir / "density.npy") as path, path.open("wb") as file:
            np.save(file, density)
        files.write_json(stage.dir / "metrics.json", measured)
        stage.finish(_counts(sae, train_config, measured))
        return stage.manifest["counts"]


def _counts(sae: Sae, config: TrainConfig, measured: dict[str, Any]) -> dict[str, Any]:
    counts = {
        "steps": config.steps,
        "tokens": config.steps * config.batch_size,
        "d_model": sae.d_model,
        "n_features": sae.n_features,
        "k": sae.k,
        "threshold": sae.threshold,
    }
    return counts | {name: measured[name] for name in ("fvu", "explained_variance", "l0", "dead", "dense")}


def _scale(source: data.ShuffledBatches, config: TrainConfig) -> float:
    """The root mean squared norm over the first batches."""
    groups = min(-(-_SCALE_BATCHES // config.chunk_steps), len(source))
    means = [np.square(source[i].astype(np.float32)).sum(-1).mean(-1, dtype=np.float64) for i in range(groups)]
    scale = float(np.float32(np.sqrt(np.concatenate(means)[:_SCALE_BATCHES].mean())))
    if not scale > 0:
        raise UserError("all activations are zero: check harvest.site")
    return scale


def _train(trainer: Trainer, store: Store, rows: np.ndarray, directory: Path) -> tuple[State, float]:
    config = trainer.config
    n_groups = -(-config.steps // config.chunk_steps)
    source = data.ShuffledBatches(store, rows, config.batch_size, config.chunk_steps, n_groups, config.seed)
    checkpoints = Checkpoints(directory / "checkpoints", trainer)
    resumed = checkpoints.load_latest()
    if resumed is None:
        scale = _scale(source, config) if config.normalize else 1.0
        state = trainer.init(source[0][0].astype(np.float32), scale)
    else:
        state, scale = resumed
    done = int(state.step)
    log = _Log(directory / "log.jsonl", done)
    chunks = source.iterate(done // config.chunk_steps) if done < config.steps else iter(())
    total = config.steps * config.batch_size
    try:
        with progress(total=total, initial=done * config.batch_size, unit="tok", desc="train") as bar:
            for chunk in chunks:
                batches = trainer.place(chunk[: config.steps - done])
                state, measured = trainer.run(state, batches, scale)
                done += len(batches)
                bar.update(log.add(measured) * config.batch_size)
                if done % config.checkpoint_every == 0 or done == config.steps:
                    bar.update(log.drain() * config.batch_size)
                    checkpoints.save(state, scale)
    finally:
        log.close()
        checkpoints.close()
    return state, scale


class _Log:
    """`log.jsonl`: the metrics of each step, fetched from the device a little late so that it never waits.

    Lines after `step`, left by an attempt that was killed, are dropped.
    """

    def __init__(self, path: Path, step: int):
        lines = path.read_text().splitlines(keepends=True)[:step] if path.is_file() else []
        with files.atomic_path(path) as temporary:
            temporary.write_text("".join(lines))
        self._file = path.open("a")
        self._step = step
        self._pending: collections.deque[Metrics] = collections.deque()

    def add(self, measured: Metrics) -> int:
        """Takes the metrics of a chunk of steps and writes those of earlier chunks; returns how many steps it wrote.

        Raises:
          UserError: a loss is not finite.
        """
        self._pending.append(measured)
        return self._write() if len(self._pending) > _IN_FLIGHT else 0

    def drain(self) -> int:
        """Writes what is pending, waiting for the device; returns how many steps it wrote."""
        return sum(self._write() for _ in range(len(self._pending)))

    def _write(self) -> int:
        host = {name: np.asarray(value) for name, value in self._pending.popleft().items()}
        for i, loss in enumerate(host["loss"]):
            if not np.isfinite(loss):
                raise UserError(f"the loss is not finite at step {self._step}: lower train.lr")
            line = {"step": self._step} | {name: value[i].tolist() for name, value in host.items()}
            self._file.write(json.dumps(line) + "\n")
            self._step += 1
        self._file.flush()
        return len(host["loss"])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _finish(trainer: Trainer, state: State, scale: float, store: Store, rows: np.ndarray) -> Sae:
    """Folds the normalisation in and sets the threshold for a mean of k features on training tokens."""
    config = trainer.config
    ordered = trainer.ordered(state)
    followed = float(ordered.threshold)
    folded, followed_raw = autoencoder.fold(ordered.params, followed, scale)
    params = jax.device_put(folded, jax.devices()[0])
    if len(rows) > config.calibration_tokens:
        rng = np.random.default_rng((config.seed, 3))
        rows = np.sort(rng.choice(rows, config.calibration_tokens, replace=False))
    threshold = calibrate.threshold_for_l0(
        params, lambda: data.sequential(store, rows, _EVALUATION_BATCH), trainer.sae.k
    )
    meta = {
        "source": dict(store.source),
        "normalization": scale,
        "running_threshold": followed_raw,
        "calibration_tokens": len(rows),
        "sae": _plain(trainer.sae),
        "train": _plain(config),
    }
    return Sae(params, threshold, trainer.sae.k, trainer.sae.group_sizes, meta)


def _plain(config: SaeConfig | TrainConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
