"""The train stage: activations in, autoencoders and their metrics out."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage
from maira_jax.run.config import RunSection
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.progress import progress
from maira_jax.run.stages.stage import Stage
from sae.activations import batches, live
from sae.activations.batch_size import DEFAULT_BATCH_SIZE
from sae.activations.config import HarvestSection
from sae.activations.store import HELD_OUT, TRAIN, ActivationRows
from sae.autoencoder import Sae
from sae.evaluation import loss_recovered, metrics
from sae.evaluation.striped import HeldOutTokens
from sae.saved import save_sae
from sae.training import flops, held_out
from sae.training.checkpoints import Checkpoints
from sae.training.config import CHUNK_STEPS, SaeConfig, SaeSection, TrainConfig, TrainSection
from sae.training.log import TrainingBoard, TrainingLog
from sae.training.step_clock import StepClock
from sae.training.trainer import Trainer, TrainState
from sae.variants import trained_as

# Batches that set the normalisation factor, as in dictionary_learning.
_SCALE_BATCHES = 100


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the autoencoder that `config.sae` and `config.train` describe, and its companions.

    All of them are trained from one stream of activations. `sae/` and, for each companion, `sae-NAME/` hold:
    checkpoints, `log.jsonl` (one line per step), `held_out.jsonl` (one line per evaluation during the training, on a
    sample of held-out tokens), `timing.jsonl` (one line per chunk of steps), the finished autoencoder
    (`sae.saved.load_sae`), `metrics.json` and `density.npy` (the density of each feature on the held-out tokens). A
    killed run resumes from its latest checkpoints, on any mesh, and on the same one, with the same microbatches, it
    ends with the same bits, the times apart. So does an autoencoder that is trained alone. SIGTERM saves a checkpoint
    before the process ends.

    Of several processes each reads its devices' part of every batch, the same one for every number of processes. The
    first one writes all files but the checkpoints, of which each writes its part.

    Returns:
      What the manifest of `sae/` counts.

    Raises:
      UserError: a field is out of range, the store cannot be read, the disk is full, or training diverges.
      SystemExit: the process was sent SIGTERM; the code is 143.
    """
    train, seed, on = TrainSection.of(config), int(config.seed), RunSection.of(config).mesh
    autoencoders = SaeSection.of(config).autoencoders()
    with contextlib.ExitStack() as stack:
        stages = {
            folder: stack.enter_context(stage_of(config, workdir, folder, train, {"sae": sae.deciding_alone()}))
            for folder, sae in autoencoders.items()
        }
        unfinished = [folder for folder, stage in stages.items() if not stage.finished]
        if unfinished:
            store = live.open_source(train.source, config, workdir, train.readers)
            loss = loss_of(config, workdir, store)
            saes = [SaeConfig.resolve(autoencoders[folder], store.d_model, train.preset) for folder in unfinished]
            trainers = [Trainer(sae, TrainConfig.resolve(train, sae, seed, on)) for sae in saes]
            runs = [TrainingRun(workdir / folder, one) for folder, one in zip(unfinished, trainers, strict=True)]
            scale = train_all(runs, store, StepTrace.of_run(config, workdir, "train", CHUNK_STEPS))
            for folder, run in zip(unfinished, runs, strict=True):
                finish(stages[folder], run.trainer, run.state, scale, store, loss)
        return stages["sae"].manifest["counts"]


def stage_of(
    config: ml_collections.ConfigDict, workdir: Path, folder: str, train: TrainSection, sections: dict[str, Any]
) -> Stage:
    """The stage of autoencoders that `train` describes, and `sections` that say which ones.

    Args:
      config: the whole configuration.
      workdir: the run directory.
      folder: the stage's folder.
      train: how they are trained.
      sections: further sections that decide the result.
    """
    identity, inputs = live.source_identity(train.source, config)
    # The weights of the model that is harvested live, and that the loss is measured in.
    identity |= {"weights": ModelSection.of(config).weights, "train": train.deciding(), "seed": int(config.seed)}
    computing = {"train": train.computing(), "mesh": RunSection.of(config).mesh}
    return Stage(workdir, folder, sections | identity, inputs=inputs, computing=computing, config=config)


def loss_of(config: ml_collections.ConfigDict, workdir: Path, store: ActivationRows) -> loss_recovered.Loss | None:
    """Measures the loss recovered of an autoencoder, as the configuration says; None where it says so."""
    return loss_recovered.of_run(
        workdir,
        store.studies,
        config.studies,
        TrainSection.of(config).loss_recovered_studies,
        HarvestSection.of(config).batch_size or DEFAULT_BATCH_SIZE,
        live.host_mesh(RunSection.of(config).mesh),
        ModelSection.of(config).weights,
    )


def _scale(source: batches.ShuffledBatches, rows: slice, batch_size: int) -> float:
    """The root mean squared norm over the first batches, of which this process reads `rows`."""
    groups = min(-(-_SCALE_BATCHES // CHUNK_STEPS), len(source))
    read = (source.group(i, rows).astype(np.float32) for i in range(groups))
    sums = np.concatenate([np.square(x).sum(-1).sum(-1, dtype=np.float64) for x in read])[:_SCALE_BATCHES]  # [batches]
    told = processes.gather([rows.start, sums.tolist()])
    # Processes that share rows, which are split along the features, tell the same.
    means = np.sum(list(dict(told).values()), axis=0) / batch_size  # [batches]
    scale = float(np.float32(np.sqrt(means.mean())))
    if not scale > 0:
        raise UserError("all activations are zero: check harvest.site")
    return scale


class TrainingRun:
    """The training of one autoencoder, or of those of one `Trainer`, one chunk of the stream after the other.

    Args:
      directory: the folder of its checkpoints and logs, in that of a stage.
      trainer: the trainer.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self.trainer, self.config, self._directory = trainer, trainer.config, directory
        self.state: TrainState
        self.done = 0
        self._checkpoints = Checkpoints(directory / "checkpoints", trainer)
        self._saved = 0
        self._log: TrainingLog | None  # of the first process

    def start(self, source: batches.ShuffledBatches, scale: float | None) -> float:
        """Resumes from the latest checkpoint, or begins. Returns the normalisation factor: `scale` if it is known."""
        resumed = self._checkpoints.load_latest()
        if resumed is not None:
            self.state, scale = resumed
        else:
            rows = self.trainer.rows
            if scale is None:
                scale = _scale(source, rows, self.config.batch_size) if self.config.normalize else 1.0
            self.state = self.trainer.init(self.trainer.place(source.group(0, rows)[:1])[0], scale)
        self.done = self._saved = int(self.state.step)
        self._log = TrainingLog(self._directory, self.done) if processes.is_first() else None
        return scale

    def advance(self, batches: jax.Array, scale: float, sample: HeldOutTokens | None, clock: StepClock) -> None:
        """Takes one step for each of `batches [steps, B, d]`, and evaluates on `sample` when it is due."""
        began = time.monotonic()
        self.state, measured = self.trainer.run(self.state, batches, scale)
        self.done += len(batches)
        times = clock.sent(measured["loss"], began)
        if self._log:
            self._log.add(measured, times)
        every = self.config.evaluate_every
        if sample is not None and self.done % every == 0 and self.done < self.config.steps:
            with jax.profiler.TraceAnnotation("evaluate"):
                sums = held_out.measured(self.trainer, self.state, scale, sample)
            if self._log:
                self._log.held_out(self.done - 1, sums, sample.n, self.trainer.sae.group_sizes)
        if self.done % self.config.checkpoint_every == 0 or self.done == self.config.steps:
            self.save(scale)

    def save(self, scale: float) -> None:
        """Starts to write a checkpoint of the present state, if there is none."""
        if self._saved < self.done:
            if self._log:
                self._log.drain()
            with self._log.writing() if self._log else contextlib.nullcontext():
                storage.send(self._directory)  # a killed run loses no more of the log than of the steps
                self._checkpoints.save(self.state, scale)
            self._saved = self.done

    def close(self) -> None:
        """Waits for checkpoints that are being written."""
        if self._log:
            self._log.close()
        self._checkpoints.close()


def measure(
    trainer: Trainer,
    state: TrainState,
    scale: float,
    store: ActivationRows,
    tokens: tuple[Sequence[HeldOutTokens], Sequence[HeldOutTokens]],
) -> tuple[Sae, dict[str, Any], np.ndarray]:
    """The autoencoder of a state, its metrics, and the density of each feature.

    `tokens` are those that set its threshold and those that it is measured on; see `held_out.final_tokens`.
    """
    setting_it, measuring = tokens
    meta = {"source": dict(store.source), "calibration_tokens": sum(part.n for part in setting_it)}
    sae = held_out.calibrated(trainer, state, scale, setting_it, meta)
    return sae, *metrics.evaluate(held_out.striped(trainer, state, scale), sae.threshold, measuring)


def finish(
    stage: Stage,
    trainer: Trainer,
    state: TrainState,
    scale: float,
    store: ActivationRows,
    loss: loss_recovered.Loss | None,
) -> None:
    """Measures a trained autoencoder, writes it and ends its stage."""
    sae, measured, density = measure(trainer, state, scale, store, held_out.final_tokens(store, trainer))
    measured["loss"] = None if loss is None else processes.first_only(functools.partial(loss, sae))
    save_measured(stage.dir, sae, measured, density)
    if processes.is_first():
        if measured["dead"] > sae.n_features / 2:
            logging.warning(
                "%s: %d of %d features are active on no held-out token: raise train.steps or lower sae.l1",
                *(stage.dir, measured["dead"], sae.n_features),
            )
        with contextlib.closing(TrainingBoard(stage.dir / "tensorboard", trainer.config.steps)) as board:
            board.held_out(trainer.config.steps, measured, density)
    config = trainer.config
    stage.finish({"steps": config.steps, "tokens": config.steps * config.batch_size} | counts_of(sae, measured))


def save_measured(directory: Path, sae: Sae, measured: dict[str, Any], density: np.ndarray) -> None:
    """Has the first process write what later stages read of a finished autoencoder, into its stage's folder."""
    save_sae(directory, sae)
    if processes.is_first():
        with files.atomic_path(directory / "density.npy") as path, path.open("wb") as file:
            np.save(file, density)
        files.write_json(directory / "metrics.json", measured)


def counts_of(sae: Sae, measured: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of a finished autoencoder counts; `k` is none of one whose kind selects any number."""
    counts = {
        "d_model": sae.d_model,
        "n_features": sae.n_features,
        "k": sae.k,
        "threshold": sae.threshold if isinstance(sae.threshold, float) else "one per feature",
    }
    variant = trained_as(sae)
    if variant is not None and not variant.at_most_k:
        del counts["k"]
    counts |= {name: measured[name] for name in ("fvu", "explained_variance", "l0", "dead", "dense")}
    return counts | ({} if measured["loss"] is None else {"loss_recovered": measured["loss"]["recovered_zero"]})


def train_all(runs: Sequence[TrainingRun], store: ActivationRows, trace: StepTrace) -> float:
    """Takes all `runs` to their last step. Returns the normalisation factor."""
    config = runs[0].config
    n_groups = -(-config.steps // CHUNK_STEPS)
    rows = store.rows_of(TRAIN)
    if not len(store.rows_of(HELD_OUT)):
        raise UserError("there is no held-out token to measure on: raise harvest.held_out_fraction")
    source = batches.ShuffledBatches(store, rows, config.batch_size, CHUNK_STEPS, n_groups, config.seed)
    scale = None
    with contextlib.ExitStack() as stack, processes.termination() as terminated:
        for run in runs:
            scale = run.start(source, scale)
            _close_at_end(stack, run.close)
        assert scale is not None
        done = min(run.done for run in runs)
        evaluates = config.evaluate_every and done < config.steps and all(run.trainer.count == 1 for run in runs)
        sample = held_out.sample(store, runs[0].trainer) if evaluates else None
        chunks = _placed(source, runs[0].trainer, done)
        bar = progress(
            total=config.steps * config.batch_size, initial=done * config.batch_size, unit="tok", desc="train"
        )
        stack.enter_context(bar)
        work = sum(run.trainer.count * flops.per_token(store.d_model, run.trainer.sae.n_features) for run in runs)
        clock = StepClock()
        _close_at_end(stack, clock.close)
        due = time.monotonic() + 60 * config.checkpoint_minutes
        for placed in trace.over(clock.feed(chunks)):
            for run in runs:
                if run.done == done:  # one whose checkpoint is ahead of the others' waits for them
                    run.advance(placed, scale, sample, clock)
            done += len(placed)
            bar.update(len(placed) * config.batch_size)
            flops.show(bar, work, list(runs[0].trainer.mesh.devices.flat))
            stops, saves = processes.broadcast([terminated.is_set(), time.monotonic() >= due])
            if stops or saves:
                for run in runs:
                    run.save(scale)
                due = time.monotonic() + 60 * config.checkpoint_minutes
            if stops:
                stack.close()
                print(f"train: terminated after step {done}; the same command resumes from there", file=sys.stderr)
                raise SystemExit(processes.TERMINATED)
    print(f"train: {clock.loop.summary('activations')}", file=sys.stderr)
    return scale


def _placed(source: batches.ShuffledBatches, trainer: Trainer, done: int) -> Iterator[jax.Array]:
    """What comes after the first `done` steps, on the devices. [CHUNK_STEPS, B, d], the last one shorter"""
    left = trainer.config.steps - done
    for chunk in source.iterate(done // CHUNK_STEPS, trainer.rows) if left else ():
        yield trainer.place(chunk[:left])
        left -= CHUNK_STEPS


def _close_at_end(stack: contextlib.ExitStack, close: Callable[[], None]) -> None:
    """Closes at the end of `stack`; of several processes not after an error, when it would wait for the others."""

    def closed(kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None or processes.count() == 1:
            close()

    stack.push(closed)
