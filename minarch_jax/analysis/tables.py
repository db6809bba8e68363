"""Records as the estimators want them: one training recipe, one setting of
several, seeds and curves as matrices."""

from collections.abc import Iterator, Sequence
import math

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


def one_recipe(
  records: Records, arm: str = records_lib.MAIN
) -> tuple[Records, list[str]]:
  """Keeps of one arm one training recipe (run_id) per data set: the one with
  most rows.

  Returns:
    The records of the kept recipes, and one sentence per data set that had
    others, because two recipes must never be averaged.
  """
  records = of_arm(records, arm)
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


def of_arm(records: Records, arm: str = records_lib.MAIN) -> Records:
  """Keeps the networks of one arm of a study, and what was made of them."""
  own = records.networks["arm"] == arm
  if own.all():
    return records
  networks = records.networks.filter(own)
  return Records(
    networks,
    *(
      table.join(networks, on=NETWORK, how="semi", maintain_order="left")
      for table in records[1:]
    ),
  )


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


class Pivot:
  """Rows of seeds arranged as [groups, seeds].

  Attributes:
    groups: [G] the values of the columns that name a group, sorted.
    seeds: [S].
    group, seed: int [N], where each row stands.
  """

  def __init__(self, rows: pl.DataFrame, by: Sequence[str]):
    self._rows = rows
    found = (  # one query: each costs a third of a millisecond
      rows.lazy()
      .select(by)
      .with_row_index("_row")
      .group_by(by)
      .agg("_row")
      .sort(by)
      .collect()
    )
    members = found["_row"]
    self.groups = found.drop("_row")
    self.group = np.empty(len(rows), int)
    numbers = np.repeat(np.arange(len(found)), members.list.len().to_numpy())
    self.group[members.explode().to_numpy()] = numbers
    self.seeds, self.seed = np.unique(
      rows["seed"].to_numpy(), return_inverse=True
    )

  def means(self, value: str) -> np.ndarray:
    """Pivots a column: [G, S], of several rows the mean, nan = none."""
    shape = len(self.groups), len(self.seeds)
    cell = self.group * len(self.seeds) + self.seed
    counts = np.bincount(cell, minlength=math.prod(shape))
    sums = np.bincount(cell, self._rows[value].to_numpy(), math.prod(shape))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means.reshape(shape)

  def numbers(self, value: str) -> np.ndarray:
    """Pivots whole numbers: int [G, S], of several the last, -1 = none."""
    matrix = np.full((len(self.groups), len(self.seeds)), -1)
    matrix[self.group, self.seed] = self._rows[value].to_numpy()
    return matrix


def mean_interval(
  frame: pl.DataFrame,
  keys: Sequence[str],
  split: str,
  confidence: float,
) -> pl.DataFrame:
  """Mean accuracies of groups with intervals over seeds and images.

  Args:
    frame: rows of `networks`, one per group and seed.
    keys: columns that name a group.
    split: val or test. All seeds share the images of test.
    confidence: level.

  Returns:
    `keys`, mean, low, high, n; low and high are null for a single value.
  """
  shares = pl.col("fold").unique_counts() / pl.len()
  grouped = frame.group_by(keys, maintain_order=True).agg(
    mean=pl.col(f"{split}_accuracy").mean(),
    deviation=pl.col(f"{split}_accuracy").std(),
    n=pl.len().cast(pl.Int64),
    images=pl.col("num_validation" if split == "val" else "num_test").max(),
    overlap=shares.pow(2).sum() if split == "val" else pl.lit(1.0),
  )
  mean, deviation, n, images, overlap = (
    grouped[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    for name in ("mean", "deviation", "n", "images", "overlap")
  )
  one = statistics.image_variance(mean, images)
  part = statistics.Images(one, one * overlap)
  error, freedom = statistics.standard_error(mean, deviation, n, part)
  half = error * statistics.t_quantile(freedom, (1 + confidence) / 2)
  half = pl.Series(half, dtype=pl.Float64).fill_nan(None)
  return grouped.with_columns(
    low=pl.col("mean") - half, high=pl.col("mean") + half
  ).drop("deviation", "images", "overlap")


def with_folds(frame: pl.DataFrame, networks: pl.DataFrame) -> pl.DataFrame:
  """Adds the fold of every row's seed, and how many images it has."""
  known = networks.group_by("dataset", "seed").agg(
    pl.col("fold").first(), pl.col("num_validation").max()
  )
  return frame.join(
    known, on=["dataset", "seed"], how="left", maintain_order="left"
  )


def images_of(groups: pl.DataFrame, rows: pl.DataFrame) -> np.ndarray:
  """Images [G] of a fold of the data set of each row of `groups`."""
  known = rows.group_by("dataset").agg(pl.col("num_validation").max())
  return (
    groups.select("dataset")
    .join(known, on="dataset", how="left", maintain_order="left")[
      "num_validation"
    ]
    .cast(pl.Float64)
    .to_numpy()
  )
