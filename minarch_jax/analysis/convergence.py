"""Convergence phases: how long curves stay at chance, rise, refine, rest."""

import numpy as np
import polars as pl

from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.outcomes import with_chance
from minarch_jax.config import Config

RESOLUTION = 1.0  # epochs: what is measured at their ends is known so well
PHASES = ("chance", "rapid", "refinement", "saturation")
THRESHOLDS = (
  "chance_level",
  "chance_margin",
  "rapid_gain",
  "saturation_margin",
  "confidence",
)


def convergence_phases(
  records: tables.Records, config: Config = tables.DEFAULTS
) -> pl.DataFrame:
  """Measures the lengths of the four phases of every architecture's curves.

  The definitions: report/method.md#convergence-phases.

  The phases of a curve partition its epochs: `chance` until validation
  accuracy leaves chance, `rapid` until `rapid_gain` of the final gain over
  1 / C, `refinement` until within `saturation_margin` of the best,
  `saturation` the rest.

  Returns:
    One row per architecture: n_seeds, n_left (seeds that left chance),
    epochs, and per phase its mean length over seeds in epochs with a Student
    interval (`rapid`, `rapid_low`, `rapid_high`, ...) that knows lengths to
    be whole epochs: equal ones are not certain. A seed that never left chance
    is all `chance` and says nothing of the later phases.
  """
  records, _ = tables.one_recipe(records)
  described = records.networks.select(
    *tables.NETWORK, "family", "depth", "params", "num_classes"
  )
  lengths = curve_phases(records, config).join(
    described, on=tables.NETWORK, how="inner", maintain_order="left"
  )
  counts = lengths.group_by(tables.ARCHITECTURE).agg(
    n_seeds=pl.len(),
    n_left=pl.col("rapid").count(),
    epochs=pl.col("epochs").max(),
  )
  pivot = tables.Pivot(
    lengths.with_columns(pl.col(PHASES).fill_null(np.nan)), tables.ARCHITECTURE
  )
  frame = pivot.groups.join(
    counts, on=tables.ARCHITECTURE, how="left", maintain_order="left"
  )
  for phase in PHASES:
    mean, low, high, _ = statistics.mean_interval(
      pivot.means(phase), config.confidence, resolution=RESOLUTION
    )
    frame = frame.with_columns(
      pl.Series(phase, mean),
      pl.Series(f"{phase}_low", np.maximum(low, 0)),
      pl.Series(f"{phase}_high", high),
    ).with_columns(
      pl.col(phase, f"{phase}_low", f"{phase}_high").fill_nan(None)
    )
  return tables.with_thresholds(
    frame.sort("dataset", "family", "params", "architecture"),
    config,
    *THRESHOLDS,
  )


def curve_phases(records: tables.Records, config: Config) -> pl.DataFrame:
  """Finds the change points of every curve.

  Returns:
    run_id, dataset, architecture, seed, epochs and the length of each phase
    in epochs as f64; rapid, refinement and saturation are null for a curve
    that never leaves chance.
  """
  known = with_chance(records.networks, config)
  parts = [_empty(records.curves)]
  for keys, curve in tables.curve_matrices(records.curves, ("val_accuracy",)):
    levels = keys.join(
      known.select(*tables.NETWORK, "chance", "floor"),
      on=tables.NETWORK,
      how="left",
      maintain_order="left",
    )
    ends = change_points(
      np.nan_to_num(curve["val_accuracy"]),
      levels["chance"].fill_null(np.nan).to_numpy(),
      levels["floor"].fill_null(np.nan).to_numpy(),
      config,
    )
    epochs = curve["val_accuracy"].shape[1]
    lengths = np.diff(ends, axis=1, prepend=0, append=epochs).astype(float)
    lengths[ends[:, 0] == epochs, 1:] = np.nan
    parts.append(
      keys.with_columns(
        epochs=pl.lit(float(epochs)),
        **{
          phase: pl.Series(lengths[:, i]).fill_nan(None)
          for i, phase in enumerate(PHASES)
        },
      )
    )
  return pl.concat(parts)


def change_points(
  accuracy: np.ndarray, chance: np.ndarray, floor: np.ndarray, config: Config
) -> np.ndarray:
  """Epochs completed when chance, rapid learning and refinement end.

  Args:
    accuracy: [N, E] validation accuracy after epochs 1 ... E.
    chance: [N] 1 / C.
    floor: [N] least accuracy above chance.
    config: rapid_gain, saturation_margin.

  Returns:
    [N, 3], each at least the one before; E where it never happens.
  """
  final, best = accuracy[:, -1], accuracy.max(1)
  levels = (
    floor - tables.TIE,
    chance + config.rapid_gain * (final - chance) - tables.TIE,
    best - config.saturation_margin - tables.TIE,
  )
  epochs = accuracy.shape[1]
  ends = []
  for level in levels:
    above = accuracy >= level[:, None]
    ends.append(np.where(above.any(1), np.argmax(above, 1), epochs))
  return np.maximum.accumulate(np.stack(ends, 1), axis=1)


def _empty(curves: pl.DataFrame) -> pl.DataFrame:
  return (
    curves.clear()
    .select(tables.NETWORK)
    .with_columns(
      pl.lit(None, pl.Float64).alias(name) for name in ("epochs", *PHASES)
    )
  )
