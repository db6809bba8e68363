"""Turns what packs return into rows of the three tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from minarch_jax import (
  compressing,
  compression,
  names,
  packs,
  quantization,
  records,
)
from minarch_jax.architectures import Architecture
from minarch_jax.quantization import cost, Rounding


def who(
  session: packs.Session, run_id: str, architecture: Architecture
) -> dict[str, Any]:
  """Says whose rows they are: the columns that all tables of networks share."""
  shape = (session.work.input_shape, session.work.num_classes)
  return {
    "run_id": run_id,
    "dataset": session.dataset.name,
    "family": architecture.family,
    "architecture": str(architecture),
    "depth": architecture.depth,
    "params": architecture.num_params(*shape),
  }


def _finite(values: Any) -> pl.Series:
  """A column of losses: what is not finite becomes null."""
  values = np.asarray(values, np.float64)
  return pl.Series(values).set(~pl.Series(np.isfinite(values)), None)


def networks(
  session: packs.Session, run_id: str, trained: packs.Trained
) -> pl.DataFrame:
  """Makes one row per network of a trained pack."""
  dataset, work = session.dataset, session.work
  scores, seeds = trained.scores, trained.pack.seeds
  first_bad = _first_bad(trained)
  num_networks = len(seeds) * len(trained.pack.architectures)
  frames = []
  for i, architecture in enumerate(trained.pack.architectures):
    sizes = {
      "train": len(dataset.train.y),
      "validation": len(dataset.validation.y),
      "test": len(dataset.test.y),
    }
    columns: dict[str, Any] = {"seed": list(seeds)}
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
          **who(session, run_id, architecture),
          "fingerprint": dataset.fingerprint,
          "macs": architecture.macs(work.input_shape, work.num_classes),
          "steps": work.num_steps,
          "epochs": work.num_epochs,
          "num_classes": work.num_classes,
          "num_validation": sizes["validation"],
          "num_test": sizes["test"],
          "seconds": trained.run_seconds / num_networks,
        }.items()
      )
    )
  return pl.concat(frames)


def _first_bad(trained: packs.Trained) -> np.ndarray:
  """First epoch (from 1) with a loss that is not finite; 0 = none. [S, A]."""
  curve = trained.curve
  bad = ~np.isfinite(curve.train.loss) | ~np.isfinite(curve.validation.loss)
  return np.where(bad.any(-1), bad.argmax(-1) + 1, 0)


def curves(
  session: packs.Session, run_id: str, trained: packs.Trained
) -> pl.DataFrame:
  """Makes one row per network and epoch of a trained pack."""
  work, curve = session.work, trained.curve
  epochs = np.arange(1, work.num_epochs + 1)
  per_epoch = work.num_steps // work.num_epochs
  num_validation = len(session.dataset.validation.y)
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
            "val_accuracy": curve.validation.correct[j, i] / num_validation,
          }
        ).with_columns(
          run_id=pl.lit(run_id),
          dataset=pl.lit(session.dataset.name),
          architecture=pl.lit(str(architecture)),
          seed=pl.lit(seed, pl.Int64),
        )
      )
  return pl.concat(frames)


def has_scales(bits: np.ndarray, roundings: Sequence[Rounding]) -> np.ndarray:
  """Says in which cells a scale is stored with the weights."""
  scaled = [quantization.format_of(each).scaled for each in roundings]
  return np.array(scaled) & (bits < 32)


def compressed(
  session: packs.Session,
  run_id: str,
  architecture: Architecture,
  seeds: Sequence[int],
  rules: Sequence[compression.Rule],
  cells: compression.Cells,
  outcome: compression.Outcome,
  *,
  schedule: str,
  steps: int,
  control: str = records.NONE,
) -> pl.DataFrame:
  """Makes one row per seed and cell of one architecture.

  Args:
    outcome: arrays [S, cells, ...]; among the cells of each (rule, sparsity)
      there is one of 32 bits.
    schedule: oneshot or finetune.
    steps: training steps the networks have seen.
    control: what was done instead of pruning in earnest.
  """
  config, dataset = session.config, session.dataset
  spec = architecture.spec(session.work.input_shape, session.work.num_classes)
  known = compressing.roundings_of(config)
  roundings = [known[index] for index in cells.rounding]
  bits = np.asarray(cells.bits, np.int64)
  activation_bits = np.asarray(cells.activation_bits, np.int64)
  nonzeros = np.asarray(outcome.nonzeros, np.int64)
  pruned = _before_rounding(cells, nonzeros)
  prunable = np.array([names.is_weight(leaf.path) for leaf in spec.leaves])
  sizes = np.array([np.prod(spec.shape(leaf)) for leaf in spec.leaves])
  kernels = np.array([leaf.is_kernel for leaf in spec.leaves])
  leaves = [(leaf.path, spec.shape(leaf)) for leaf in spec.leaves]
  counts = {
    "/".join(path): nonzeros[..., i] for i, (path, _) in enumerate(leaves)
  }
  num_cells, num_seeds = len(bits), len(seeds)
  quantizers = [each.quantizer for each in roundings]
  granularities = [each.granularity for each in roundings]
  scaled = has_scales(bits, roundings)
  columns: Mapping[str, Any] = {
    "seed": np.repeat(np.asarray(seeds, np.int64), num_cells),
    "criterion": [rules[r].criterion for r in cells.rule] * num_seeds,
    "scope": [rules[r].scope for r in cells.rule] * num_seeds,
    "granularity": [rules[r].granularity for r in cells.rule] * num_seeds,
    "sparsity": np.tile(
      np.round(cells.sparsity.astype(np.float64), 6), num_seeds
    ),
    "achieved_sparsity": 1
    - pruned[..., prunable].sum(-1).ravel() / sizes[prunable].sum(),
    "dead_layers": (pruned[..., kernels] == 0).sum(-1).ravel(),
    "bits": np.tile(bits, num_seeds),
    "activation_bits": np.tile(activation_bits, num_seeds),
    "quantizer": np.tile(np.where(bits < 32, quantizers, "none"), num_seeds),
    "quant_granularity": np.tile(
      np.where(scaled, granularities, "none"), num_seeds
    ),
    "val_accuracy": outcome.validation.ravel() / len(dataset.validation.y),
    "test_accuracy": outcome.test.ravel() / len(dataset.test.y),
    "bytes": quantization.grid_bytes(leaves, nonzeros, bits, roundings).ravel(),
    "nonzeros": nonzeros.sum(-1).ravel(),
    "macs": cost.macs(spec, counts).ravel(),
  }
  return pl.DataFrame(columns).with_columns(
    pl.lit(value).alias(name)
    for name, value in {
      **who(session, run_id, architecture),
      "schedule": schedule,
      "control": control,
      "steps": steps,
    }.items()
  )


def _before_rounding(
  cells: compression.Cells, nonzeros: np.ndarray
) -> np.ndarray:
  """The counts of each cell's 32-bit neighbour, [S, cells, leaves]."""
  neighbour = {
    (rule, sparsity): i
    for i, (rule, sparsity, bits) in enumerate(
      zip(*(column.tolist() for column in cells[:3]), strict=True)
    )
    if bits == 32
  }
  index = [
    neighbour[pair]
    for pair in zip(cells.rule.tolist(), cells.sparsity.tolist(), strict=True)
  ]
  return nonzeros[:, index]
