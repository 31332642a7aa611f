"""The sweep stage: autoencoders of many widths, rates and sparsities from one stream, their table, and the best one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import pyarrow as pa
import pyarrow.parquet as pq

from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.stages.stage import MANIFEST, Stage
from sae.activations import live
from sae.activations.store import ActivationRows
from sae.sweep import pareto
from sae.sweep.member_trainer import MemberConfig, MemberTrainer, grouped
from sae.sweep.section import SweepMember, SweepSection, members
from sae.training import held_out
from sae.training.config import CHUNK_STEPS, SaeSection, TrainSection
from sae.training.stage import TrainingRun, finish, loss_of, measure, stage_of, train_all
from sae.training.trainer import TrainState

_MEASURES = {
    "fvu": column("fvu", pa.float64(), "fraction of variance unexplained, on held-out tokens"),
    "explained_variance": column("explained_variance", pa.float64(), "1 less it"),
    "cosine": column("cosine", pa.float64(), "mean cosine of a token with its reconstruction"),
    "l0": column("l0", pa.float64(), "features active on a token, on average"),
    "dead": column("dead", pa.int64(), "features that no held-out token activates"),
    "dense": column("dense", pa.int64(), "features active on more than a tenth of the tokens"),
}
SCHEMA = pa.schema(
    [
        column("member", pa.int64(), "number of the autoencoder, from 0"),
        column("n_features", pa.int64(), "its width"),
        column("lr", pa.float64(), "its learning rate"),
        column("k", pa.int64(), "features kept in training, on average; of a ReLU autoencoder without meaning"),
        column("l1", pa.float64(), "weight of its L1 penalty"),
        *_MEASURES.values(),
        column("best", pa.bool_(), "whether it is the one in sae/"),
    ]
)
# Members whose fvu exceeds the lowest one by at most this share of it are taken for equally good.
_EQUAL = 0.01


class _MemberGroup(NamedTuple):
    """Members that are trained in one program, by their indices, and their trainer."""

    members: list[int]
    trainer: MemberTrainer


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains all members of `config.sweep`, whose other fields are those of `config.sae` and `config.train`.

    Every batch is read once, for all members. Those of one shape are trained in one program. `sweep/` holds the
    checkpoints and logs of each group of them, `sweep.parquet` (one row per member, measured on held-out tokens) and
    `pareto.svg` (fvu against L0). The best member becomes `sae/`, as `launch.train` with its fields would write it.
    A killed run resumes from its latest checkpoints.

    Returns:
      The best member, and how many there are.

    Raises:
      UserError: a field is out of range, `sae/` holds something else, or as `sae.training.stage.run` raises.
      SystemExit: the process was sent SIGTERM; the code is 143.
    """
    workdir, train, seed, on = Path(workdir), TrainSection.of(config), int(config.seed), RunSection.of(config).mesh
    sweep, sae = SweepSection.of(config), SaeSection.of(config)
    all_members = members(sweep, sae, train)
    with stage_of(config, workdir, "sweep", train, {"sae": sae.deciding_alone(), "sweep": sweep.deciding()}) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        _refuse_other_sae(config, workdir, all_members)
        store = live.open_source(train.source, config, workdir, train.readers)
        configs = [member.resolved(store.d_model, seed, on) for member in all_members]
        groups = [_MemberGroup(found, MemberTrainer([configs[i] for i in found])) for found in grouped(configs)]
        runs = [TrainingRun(stage.dir / f"group-{number}", group.trainer) for number, group in enumerate(groups)]
        scale = train_all(runs, store, StepTrace.of_run(config, workdir, "train", CHUNK_STEPS))
        measured: dict[int, dict[str, Any]] = {}
        for group, run in zip(groups, runs, strict=True):
            measured |= _measured(group, run.state, scale, store)
        best = choose([measured[index] for index in range(len(configs))], sweep.max_l0)
        table = _table(configs, measured, best)
        if processes.is_first():
            _write(stage.dir, table)
        group, run = next((group, run) for group, run in zip(groups, runs, strict=True) if best in group.members)
        with _stage_of_member(config, workdir, all_members[best]) as own:
            if not own.finished:
                loss, place = loss_of(config, workdir, store), group.members.index(best)
                state = group.trainer.member(run.state, place)
                finish(own, group.trainer.alone[place], state, scale, store, loss)
        chosen = table.slice(best, 1).to_pylist()[0]
        stage.finish({"members": len(all_members), "groups": len(groups)} | chosen)
        return stage.manifest["counts"]


def choose(measured: Sequence[dict[str, Any]], max_l0: float) -> int:
    """The index of the best member.

    Of those with at most `max_l0` features per token, rounded, the one with the lowest fvu; where several are within
    1 % of it, the one with the fewest dead features. If none has so few features per token, the one with the fewest.

    Args:
      measured: `fvu`, `l0` and `dead` of each member.
      max_l0: features per token.
    """
    sparse = [i for i, found in enumerate(measured) if round(found["l0"]) <= max_l0]
    if not sparse:
        return min(range(len(measured)), key=lambda i: measured[i]["l0"])
    lowest = min(measured[i]["fvu"] for i in sparse)
    equal = [i for i in sparse if measured[i]["fvu"] <= lowest * (1 + _EQUAL)]
    return min(equal, key=lambda i: (measured[i]["dead"], measured[i]["fvu"]))


def _stage_of_member(config: ml_collections.ConfigDict, workdir: Path, member: SweepMember) -> Stage:
    """The stage that `launch.train` would run for one member alone."""
    return stage_of(config, workdir, "sae", member.train, {"sae": member.sae.deciding_alone()})


def _refuse_other_sae(config: ml_collections.ConfigDict, workdir: Path, found: Sequence[SweepMember]) -> None:
    """Refuses, before anything is trained, a `sae/` that the best member could not become."""
    path = workdir / "sae" / MANIFEST
    storage.fetch(path)
    if path.is_file():
        there = files.read_object(path).get("section")
        if all(_stage_of_member(config, workdir, member).section != there for member in found):
            raise UserError(
                f"{path.parent} holds an autoencoder that is no member of this sweep: "
                "choose another --workdir or delete that folder"
            )


def _measured(
    group: _MemberGroup, states: TrainState, scale: float, store: ActivationRows
) -> dict[int, dict[str, Any]]:
    """The metrics of each member of a group, by its index."""
    tokens, found = held_out.final_tokens(store, group.trainer), {}
    for place, (index, trainer) in enumerate(zip(group.members, group.trainer.alone, strict=True)):
        found[index] = measure(trainer, group.trainer.member(states, place), scale, store, tokens)[1]
    return found


def _table(configs: Sequence[MemberConfig], measured: Mapping[int, dict[str, Any]], best: int) -> pa.Table:
    """One row per member."""
    rows = [
        {"member": index, "n_features": sae.n_features, "lr": train.lr, "k": sae.k, "l1": sae.l1}
        | {name: measured[index][name] for name in _MEASURES}
        | {"best": index == best}
        for index, (sae, train) in enumerate(configs)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _write(directory: Path, table: pa.Table) -> None:
    """Writes the table and the plot, and prints the table."""
    with files.atomic_path(directory / "sweep.parquet") as path:
        pq.write_table(table, path)
    rows = table.to_pylist()
    with files.atomic_path(directory / "pareto.svg") as path:
        path.write_text(pareto.svg(rows), encoding="utf-8")
    columns = [name for name in table.column_names if name != "best"]
    print("  ".join(f"{name:>10}" for name in columns))
    for row in rows:
        cells = (f"{row[name]:>10.4g}" if isinstance(row[name], float) else f"{row[name]:>10}" for name in columns)
        print("  ".join(cells) + ("  best" if row["best"] else ""))
