"""Turns what packs return into rows of the tables."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax import quantization, records
from minarch_jax.architectures import Architecture
from minarch_jax.compression import retraining, scoring
from minarch_jax.compression.grid import Cell, Precision, Retraining
from minarch_jax.compression.programs import Outcome
from minarch_jax.compression.running import Compressed
from minarch_jax.engine import session as sessions
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.quantization import cost


def identity(
  session: Session, run_id: str, architecture: Architecture
) -> dict[str, Any]:
  """Says whose rows they are: the columns that all tables of networks share."""
  return {
    "run_id": run_id,
    "dataset": session.dataset.name,
    "family": architecture.family,
    "architecture": str(architecture),
    "depth": architecture.depth,
    "params": architecture.spec(session.problem).num_params,
  }


def _finite(values: Any) -> pl.Series:
  """A column of losses: what is not finite becomes null."""
  values = np.asarray(values, np.float64)
  return pl.Series(values).set(~pl.Series(np.isfinite(values)), None)


# --- training ----------------------------------------------------------------


def networks(session: Session, run_id: str, trained: Trained) -> pl.DataFrame:
  """Makes one row per network of a trained pack."""
  dataset, work = session.dataset, session.work
  scores, seeds = trained.scores, trained.pack.seeds
  first_bad = _first_bad(trained)
  num_networks = len(seeds) * len(trained.pack.architectures)
  sizes = {split: session.sizes(seeds, split) for split in sessions.SPLITS}
  frames = []
  for i, architecture in enumerate(trained.pack.architectures):
    columns: dict[str, Any] = {
      "seed": list(seeds),
      "fold": [seed % dataset.num_folds for seed in seeds],
      "num_validation": sizes["validation"],
      "num_test": sizes["test"],
    }
    for name, score in zip(("train", "val", "test"), scores, strict=True):
      split = "validation" if name == "val" else name
      columns[f"{name}_loss"] = _finite(score.loss[:, i])
      columns[f"{name}_accuracy"] = score.correct[:, i] / sizes[split]
    bad = first_bad[:, i]
    final = np.isfinite(scores.train.loss[:, i])
    columns["diverged"] = (bad > 0) | ~final
    columns["diverged_epoch"] = [
      int(epoch) if epoch else (None if fine else work.num_epochs)
      for epoch, fine in zip(bad, final, strict=True)
    ]
    frames.append(
      pl.DataFrame(
        columns, schema_overrides={"diverged_epoch": pl.Int64}
      ).with_columns(
        pl.lit(value).alias(name)
        for name, value in {
          **identity(session, run_id, architecture),
          "fingerprint": dataset.fingerprint,
          "arm": session.arm,
          "macs": architecture.spec(session.problem).macs,
          "steps": work.num_steps,
          "epochs": work.num_epochs,
          "num_classes": session.problem.num_classes,
          "seconds": trained.run_seconds / num_networks,
        }.items()
      )
    )
  return records.typed("networks", pl.concat(frames))


def _first_bad(trained: Trained) -> np.ndarray:
  """First epoch (from 1) with a loss that is not finite; 0 = none. [S, A]."""
  curve = trained.curve
  bad = ~np.isfinite(curve.train.loss) | ~np.isfinite(curve.validation.loss)
  return np.where(bad.any(-1), bad.argmax(-1) + 1, 0)


def curves(session: Session, run_id: str, trained: Trained) -> pl.DataFrame:
  """Makes one row per network and epoch of a trained pack."""
  work, curve = session.work, trained.curve
  epochs = np.arange(1, work.num_epochs + 1)
  per_epoch = work.num_steps // work.num_epochs
  held = session.sizes(trained.pack.seeds, "validation")
  frames = []
  for i, architecture in enumerate(trained.pack.architectures):
    for j, seed in enumerate(trained.pack.seeds):
      frames.append(
        pl.DataFrame(
          {
            "epoch": epochs,
            "step": epochs * per_epoch,
            "train_loss": _finite(curve.train.loss[j, i]),
            "train_accuracy": curve.train.accuracy[j, i].astype(np.float64),
            "val_loss": _finite(curve.validation.loss[j, i]),
            "val_loss_even": _finite(curve.validation.even[j, i]),
            "val_loss_odd": _finite(curve.validation.odd[j, i]),
            "val_accuracy": curve.validation.correct[j, i] / held[j],
          }
        ).with_columns(
          run_id=pl.lit(run_id),
          dataset=pl.lit(session.dataset.name),
          architecture=pl.lit(str(architecture)),
          seed=pl.lit(seed, pl.Int64),
        )
      )
  return records.typed("curves", pl.concat(frames))


def hits(session: Session, run_id: str, trained: Trained) -> pl.DataFrame:
  """Makes one row per network of a trained pack: its validation hits."""
  seeds, scored = trained.pack.seeds, trained.scores.validation
  return pl.concat(
    records.typed(
      "hits",
      pl.DataFrame(_bits(session, seeds, scored.hits[:, i, None])).with_columns(
        pl.lit(value).alias(name)
        for name, value in {
          **records.AS_TRAINED,
          "run_id": run_id,
          "dataset": session.dataset.name,
          "architecture": str(architecture),
        }.items()
      ),
    )
    for i, architecture in enumerate(trained.pack.architectures)
  )


def _bits(
  session: Session, seeds: Sequence[int], found: np.ndarray
) -> dict[str, Any]:
  """The columns that tell hits [S, cells, bytes], seed by seed."""
  cells = found.shape[1]
  images = session.sizes(seeds, "validation")
  return {
    "seed": np.repeat(np.asarray(seeds, np.int64), cells),
    "fold": np.repeat([s % session.dataset.num_folds for s in seeds], cells),
    "images": np.repeat(images, cells),
    "hits": [
      row[: -(-count // 8)].tobytes()
      for of_seed, count in zip(found, images.tolist(), strict=True)
      for row in of_seed
    ],
  }


# --- compression -------------------------------------------------------------


class Scored(NamedTuple):
  """What one architecture scored: every seed in every cell.

  Attributes:
    architecture: of the networks.
    seeds: S of them.
    cells: among those of each (rule, sparsity) there is one of 32 bits.
    outcome: arrays [S, cells, ...].
    steps: training steps the networks have seen.
    schedule: a name of `registries.SCHEDULES` or `registries.MOVES`.
    control: what was done to the found mask or the weights under it, if
      anything.
  """

  architecture: Architecture
  seeds: Sequence[int]
  cells: Sequence[Cell]
  outcome: Outcome
  steps: int
  schedule: str = "oneshot"
  control: str = records.NONE


def oneshot(
  session: Session,
  run_id: str,
  pack: Pack,
  found: Compressed,
  cells: Sequence[Cell],
) -> list[pl.DataFrame]:
  """Makes the rows of the one-shot grid."""
  steps, frames = session.work.num_steps, []
  for i, a in enumerate(pack.architectures):
    outcome = _member(session, pack, found.oneshot, i, a)
    scored = Scored(a, pack.seeds, cells, outcome, steps)
    frames.append(compressed(session, run_id, scored))
  return frames


def retrained(
  session: Session,
  run_id: str,
  pack: Pack,
  found: Compressed,
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> list[pl.DataFrame]:
  """Makes the rows of retraining; none where nothing was retrained."""
  if found.retrained is None:
    return []
  steps = session.work.num_steps + math.prod(
    retraining.retraining_steps(session)
  )
  frames = []
  for i, each in enumerate(retrainings):
    cells = [Cell(each.rule, each.sparsity, p) for p in precisions]
    outcome = _member(session, pack, found.retrained, i, each.architecture)
    scored = Scored(
      *(each.architecture, pack.seeds, cells, outcome, steps),
      each.schedule,
      each.control or records.NONE,
    )
    frames.append(compressed(session, run_id, scored))
  return frames


def small_dense(
  session: Session,
  run_id: str,
  trained: Trained,
  index: int,
  replaced: tuple[Architecture, Cell],
  steps: int,
) -> pl.DataFrame:
  """Makes the rows of a small dense network, a control of pruning.

  Args:
    trained: a pack of such networks.
    index: which of its architectures.
    replaced: the large architecture, under whose name the rows stand, and the
      cell that pruning is compared in.
    steps: training steps the networks have seen.
  """
  architecture, cell = replaced
  small, seeds = trained.pack.architectures[index], trained.pack.seeds
  spec, size = (a.spec(session.problem) for a in (architecture, small))
  counts = [math.prod(size.shape(leaf)) for leaf in size.leaves]
  outcome = Outcome(
    trained.scores.validation.correct[:, index : index + 1],
    trained.scores.test.correct[:, index : index + 1],
    trained.scores.validation.hits[:, index : index + 1],
    np.tile(counts, (len(seeds), 1, 1)),
  )
  scored = Scored(
    small, seeds, [cell], outcome, steps, "finetune", "small_dense"
  )
  return compressed(session, run_id, scored).with_columns(
    architecture=pl.lit(str(architecture)),
    depth=pl.lit(architecture.depth),
    params=pl.lit(spec.num_params),
    achieved_sparsity=pl.lit(1 - size.num_params / spec.num_params),
  )


def _member(
  session: Session,
  pack: Pack,
  outcome: Outcome,
  index: int,
  architecture: Architecture,
) -> Outcome:
  own, parent = (a.spec(session.problem) for a in (architecture, pack.parent))
  return scoring.of_member(outcome, index, own, parent)


def compressed(session: Session, run_id: str, scored: Scored) -> pl.DataFrame:
  """Makes one row per seed and cell of one architecture.

  What a cell was is read off the cell: no configuration is asked. The rows
  hold the columns of both `compression` and `hits`.
  """
  outcome, cells = scored.outcome, scored.cells
  held, tested = (
    session.sizes(scored.seeds, split)[:, None] for split in scoring.SCORED
  )
  spec = scored.architecture.spec(session.problem)
  roundings = [cell.precision.rounding for cell in cells]
  bits = np.array([cell.precision.bits for cell in cells], np.int64)
  nonzeros = np.asarray(outcome.nonzeros, np.int64)
  sizes = np.array([np.prod(spec.shape(leaf)) for leaf in spec.leaves])
  weights = np.array([leaf.is_weight for leaf in spec.leaves])
  kernels = np.array([leaf.is_kernel for leaf in spec.leaves])
  leaves = [(leaf.path, spec.shape(leaf)) for leaf in spec.leaves]
  counts = {leaf.name: nonzeros[..., i] for i, leaf in enumerate(spec.leaves)}
  pruned = _before_rounding(cells, nonzeros)
  columns: Mapping[str, Any] = {
    **_bits(session, scored.seeds, outcome.hits),
    "achieved_sparsity": 1
    - pruned[..., weights].sum(-1).ravel() / sizes[weights].sum(),
    "dead_layers": (pruned[..., kernels] == 0).sum(-1).ravel(),
    "val_accuracy": (outcome.validation / held).ravel(),
    "test_accuracy": (outcome.test / tested).ravel(),
    "bytes": quantization.grid_bytes(leaves, nonzeros, bits, roundings).ravel(),
    "nonzeros": nonzeros.sum(-1).ravel(),
    "macs": cost.macs(spec, counts).ravel(),
  }
  for name, values in _settings(cells).items():
    columns[name] = np.tile(values, len(scored.seeds))
  return pl.DataFrame(columns).with_columns(
    pl.lit(value).alias(name)
    for name, value in {
      **identity(session, run_id, scored.architecture),
      "schedule": scored.schedule,
      "control": scored.control,
      "steps": scored.steps,
    }.items()
  )


def _settings(cells: Sequence[Cell]) -> dict[str, np.ndarray]:
  """The columns that say what each cell is; none where nothing is rounded."""
  none = records.NONE
  rows = []
  for (criterion, scope, granularity), sparsity, precision in cells:
    bits, rounding, activation_bits = precision
    narrow = bits < 32
    scaled = narrow and quantization.format_of(rounding).scaled
    rows.append(
      {
        "criterion": criterion,
        "scope": scope,
        "granularity": granularity,
        "sparsity": round(float(np.float32(sparsity)), 6),
        "bits": bits,
        "activation_bits": activation_bits,
        "quantizer": rounding.quantizer if narrow else none,
        "quant_granularity": rounding.granularity if scaled else none,
      }
    )
  return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _before_rounding(cells: Sequence[Cell], nonzeros: np.ndarray) -> np.ndarray:
  """The counts of each cell's 32-bit neighbour, [S, cells, leaves]."""
  neighbour = {
    (cell.rule, cell.sparsity): i
    for i, cell in enumerate(cells)
    if cell.precision.bits == 32
  }
  index = [neighbour[cell.rule, cell.sparsity] for cell in cells]
  return nonzeros[:, index]
