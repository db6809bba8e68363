"""Records as the estimators want them: one training recipe, one setting of
several, seeds and curves as matrices."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from minarch_jax import records as records_lib
from minarch_jax.analysis import statistics
from minarch_jax.config import Config

Records = records_lib.Records
DEFAULTS = Config()
TIE = 1e-9  # differences of accuracy that are rounding

NETWORK = records_lib.NETWORK
ARCHITECTURE = ("dataset", "family", "architecture", "depth", "params")
CHUNK = 4_000_000  # values of one curve column held at a time


def one_recipe(records: Records) -> tuple[Records, list[str]]:
  """Keeps one training recipe (run_id) per data set: the one with most rows.

  Returns:
    The records of the kept recipes, and one sentence per data set that had
    others, because two recipes must never be averaged.
  """
  counts = (
    records.networks.group_by("dataset", "run_id")
    .len()
    .sort("dataset", "len", "run_id", descending=[False, True, False])
  )
  kept = counts.unique("dataset", keep="first", maintain_order=True)
  if len(kept) == len(counts):
    return records, []
  notes = [
    f"{row['dataset']}: {others} other training recipe(s) in these records "
    f"left out; analysed run {row['run_id']} ({row['len']} networks)"
    for row in kept.iter_rows(named=True)
    if (others := len(counts.filter(dataset=row["dataset"])) - 1)
  ]
  run_ids = kept["run_id"].implode()
  return Records(
    *(t.filter(pl.col("run_id").is_in(run_ids)) for t in records)
  ), notes


def under(rows: pl.DataFrame, control: str = records_lib.NONE) -> pl.DataFrame:
  """Keeps the compression rows of one control; `none` = the networks that are
  studied, which is what records without such a column hold."""
  if "control" not in rows.columns:
    rows = rows.with_columns(control=pl.lit(records_lib.NONE))
  name = pl.col("control").replace("", records_lib.NONE)
  return rows.filter(name.fill_null(records_lib.NONE) == control)


# The rows that a plain number of bits speaks of: weights rounded to symmetric
# integers over their whole range, or as trained, and activations as computed.
COMPUTED = pl.col("activation_bits") == 32
AS_TRAINED = (pl.col("bits") == 32) & COMPUTED
INTEGER = pl.col("quantizer").is_in(["absmax", "none"])

RANDOM = "random"  # the criterion that is a control
RANKED = pl.col("criterion") != RANDOM

# Of several settings that were measured, the first of these speaks for all.
FIRST = {
  "criterion": ("magnitude",),
  "scope": ("global",),
  "granularity": ("element",),
  "schedule": ("oneshot",),
  "quant_granularity": ("channel", "tensor"),
}


def preferred(rows: pl.DataFrame, column: str, then: Sequence[str] = ()) -> str:
  """Chooses one of the values of a column, which must not be empty.

  The first of `FIRST`, then of `then`, that occurs; else the first in order.
  """
  values = rows[column].unique().sort().to_list()
  order = (*FIRST[column], *then)
  return next((name for name in order if name in values), values[0])


def primary(rows: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
  """Keeps the rows of the preferred value of each column, in turn."""
  for column in columns:
    if len(rows):
      rows = rows.filter(pl.col(column) == preferred(rows, column))
  return rows


def plain(rows: pl.DataFrame) -> pl.DataFrame:
  """Keeps the compression rows that sparsity and bits describe wholly."""
  return rows.filter(COMPUTED & INTEGER)


def with_thresholds(
  frame: pl.DataFrame, config: Config, *names: str
) -> pl.DataFrame:
  """Records the thresholds a result was made with beside the result."""
  return frame.with_columns(
    pl.lit(getattr(config, name)).alias(name) for name in names
  )


def curve_matrices(
  curves: pl.DataFrame, columns: Sequence[str]
) -> Iterator[tuple[pl.DataFrame, dict[str, np.ndarray]]]:
  """Yields chunks of networks with their curves as [networks, epochs].

  Works on one pass over the columns when rows are ordered by network and
  epoch, as records are read; sorts otherwise. Missing values become nan.
  """
  if not len(curves):
    return
  starts = _run_starts(curves)
  if starts is None:
    curves = curves.sort(*NETWORK, "epoch")
    starts = _run_starts(curves)
  if starts is None:
    raise ValueError("two curve rows share one network and epoch")
  lengths = np.diff(np.append(starts, len(curves)))
  keys = curves.select(NETWORK)
  for epochs in np.unique(lengths):
    chosen = starts[lengths == epochs]
    size = max(1, CHUNK // int(epochs))
    for begin in range(0, len(chosen), size):
      rows = chosen[begin : begin + size]
      index = (rows[:, None] + np.arange(epochs)).ravel()
      part = curves.select(columns)[index]
      yield (
        keys[rows],
        {name: part[name].to_numpy().reshape(-1, epochs) for name in columns},
      )


def _run_starts(curves: pl.DataFrame) -> np.ndarray | None:
  """First row of each network; None when the rows are not in order."""
  change = pl.any_horizontal(
    pl.col(name).ne_missing(pl.col(name).shift()) for name in NETWORK
  )
  marked = (
    curves.lazy()
    .select(new=change, later=pl.col("epoch") > pl.col("epoch").shift())
    .collect()
  )
  new = marked["new"].to_numpy().copy()
  new[0] = True
  starts = np.flatnonzero(new)
  ordered = (marked["later"].fill_null(True).to_numpy() | new).all()
  heads = curves.select(NETWORK)[starts]
  if not ordered or len(heads.unique()) < len(heads):
    return None
  return starts


def size_classes(params: np.ndarray, tolerance: float) -> np.ndarray:
  """Numbers the groups of sorted parameter counts that match.

  A class begins at a count that exceeds the first of the class before by
  more than `tolerance`.
  """
  classes = np.zeros(len(params), int)
  first = 0
  for i in range(1, len(params)):
    new = params[i] > params[first] * (1 + tolerance)
    classes[i] = classes[i - 1] + new
    first = i if new else first
  return classes


def by_difficulty(networks: pl.DataFrame) -> tuple[str, ...]:
  """Orders data sets by falling best validation accuracy."""
  best = networks.group_by("dataset").agg(pl.max("val_accuracy"))
  return tuple(
    best.sort("val_accuracy", "dataset", descending=[True, False])["dataset"]
  )


def seed_matrix(
  rows: pl.DataFrame, by: Sequence[str], value: str
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
  """Pivots to [groups, seeds]; a missing cell is nan.

  Args:
    rows: one row per group and seed (several are averaged).
    by: columns that name a group.
    value: the column of the cells.

  Returns:
    groups (sorted by `by`), seeds [S], matrix [G, S].
  """
  groups = rows.select(by).unique().sort(by).with_row_index("_group")
  seeds = np.unique(rows["seed"].to_numpy())
  group = rows.select(by).join(
    groups, on=by, how="left", nulls_equal=True, maintain_order="left"
  )["_group"]
  cell = group.to_numpy().astype(np.int64) * len(seeds) + np.searchsorted(
    seeds, rows["seed"].to_numpy()
  )
  size = len(groups) * len(seeds)
  counts = np.bincount(cell, minlength=size)
  sums = np.bincount(cell, rows[value].to_numpy(), size)
  matrix = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
  return groups.drop("_group"), seeds, matrix.reshape(len(groups), len(seeds))


def mean_interval(
  frame: pl.DataFrame,
  keys: Sequence[str],
  column: str,
  confidence: float,
  images: str,
) -> pl.DataFrame:
  """Means of groups with intervals over seeds and images.

  Args:
    frame: one row per group and seed.
    keys: columns that name a group.
    column: an accuracy.
    confidence: level.
    images: the column that says on how many images it was measured.

  Returns:
    `keys`, mean, low, high, n; low and high are null for a single value.
  """
  grouped = frame.group_by(keys, maintain_order=True).agg(
    mean=pl.col(column).mean(),
    deviation=pl.col(column).std(),
    n=pl.len().cast(pl.Int64),
    images=pl.col(images).max(),
  )
  error, freedom = statistics.standard_error(
    *(
      grouped[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
      for name in ("mean", "deviation", "n", "images")
    )
  )
  half = error * statistics.t_quantile(freedom, (1 + confidence) / 2)
  half = pl.Series(half, dtype=pl.Float64).fill_nan(None)
  return grouped.with_columns(
    low=pl.col("mean") - half, high=pl.col("mean") + half
  ).drop("deviation", "images")


def images_of(groups: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
  """Validation images [G] of the data set of each row of `groups`."""
  known = rows.group_by("dataset").agg(pl.col("num_validation").max())
  return (
    groups.select("dataset")
    .join(known, on="dataset", how="left", maintain_order="left")[
      "num_validation"
    ]
    .cast(pl.Float64)
    .to_numpy()
  )
