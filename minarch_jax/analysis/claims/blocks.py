"""Effects over architectures, seeds and images together.

A block is a validation fold with all seeds that were measured on it: other
images, other seeds, so blocks differ by both sources of error at once and are
independent. Where all seeds share their images a block is a fifth of the seeds;
intervals then hold for new seeds on these images.

An effect is linear in what was measured, sum over architectures of w * mean
over blocks of y. Its variance has two parts: over blocks, from the effect in
each block; and over architectures, from how they scatter about the fit. This is
two-way clustering (Cameron, Gelbach and Miller 2011) without taking off what
both hold, the noise of single networks: with five blocks it is too uncertain.
"""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special

from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.hits import Hits

Array = np.ndarray
FEWEST_FOLDS = 3  # from which on folds are blocks
PARTS = 5  # of the seeds where folds are fewer


class Estimate(NamedTuple):
  """An effect, the two parts of its variance, and its degrees of freedom."""

  value: float
  over_blocks: float
  over_cells: float
  freedom: float

  @property
  def error(self) -> float:
    return math.sqrt(self.over_blocks + self.over_cells)

  def interval(self, confidence: float) -> tuple[float, float]:
    """Student's."""
    quantile = statistics.t_quantile(
      np.array(self.freedom), (1 + confidence) / 2
    )
    half = self.error * float(quantile)
    return self.value - half, self.value + half

  def power(
    self,
    distance: float,
    confidence: float,
    more_seeds: float = 1.0,
    more_cells: float = 1.0,
  ) -> float:
    """Probability of deciding for an effect `distance` from the limit.

    Args:
      distance: the effect that matters.
      confidence: level of the interval.
      more_seeds, more_cells: times the seeds and architectures there are.
    """
    error = math.sqrt(
      self.over_blocks / more_seeds + self.over_cells / more_cells
    )
    return power(distance, error, self.freedom, confidence)


def power(
  distance: float, error: float, freedom: float, confidence: float
) -> float:
  """Power of one side of a two-sided t-test (noncentral t)."""
  if not freedom > 0 or math.isnan(error):
    return 0.0
  if error == 0:
    return 1.0
  shift = min(distance / error, 30.0)
  quantile = statistics.t_quantile(np.array(freedom), (1 + confidence) / 2)
  if freedom > 1000:
    return float(special.ndtr(shift - quantile))
  return 1 - float(special.nctdtr(freedom, shift, quantile))


def of_networks(networks: pl.DataFrame) -> pl.DataFrame:
  """The block of every seed: dataset, seed, block."""
  folds = pl.col("fold").n_unique().over("dataset") >= FEWEST_FOLDS
  rank = (pl.col("seed").rank("dense").over("dataset") - 1) % PARTS
  return (
    networks.with_columns(
      block=pl.when(folds).then("fold").otherwise(rank.cast(pl.Int64))
    )
    .select("dataset", "seed", "block")
    .unique()
  )


def matrix(
  rows: pl.DataFrame, networks: pl.DataFrame, by: Sequence[str], value: str
) -> tuple[pl.DataFrame, Array]:
  """Means of a value per group and block.

  Args:
    rows: one per group and seed, with a column `dataset`.
    networks: those of the arm, which say what the block of a seed is.
    by: columns that name a group.
    value: the column.

  Returns:
    groups (sorted by `by`), values [G, B]; groups that miss a block are left
    out, for blocks could not be compared then.
  """
  seeds = rows.join(of_networks(networks), on=["dataset", "seed"], how="inner")
  seeds = seeds.drop("seed").rename({"block": "seed"})
  pivot = tables.Pivot(seeds.drop_nulls(value), by)
  values = pivot.means(value)
  whole = ~np.asarray(np.isnan(values).any(1))
  return pivot.groups.filter(whole), values[whole]


def leave_one_out(whole: Array, without: Array) -> Array:
  """Pseudo-values of a statistic that is not linear (the jackknife).

  Args:
    whole: [G] the statistic over all blocks.
    without: [G, B] without each block in turn.

  Returns:
    [G, B]: their mean and spread over blocks are those of the statistic.
  """
  count = without.shape[1]
  return count * whole[:, None] - (count - 1) * without


def effect(
  values: Array, weights: Array, fitted: Array, leverage: Array
) -> Estimate:
  """Estimates a linear effect; see the head of this file.

  Residuals count as HC2 has it, e^2 / (1 - h): unbiased where architectures
  scatter alike, and little off where they do not (MacKinnon and White 1985).

  Args:
    values: [G, B] per architecture (or cell of them) and block.
    weights: [G] of the effect.
    fitted: [G] what the fit that the effect is a part of says.
    leverage: [G] of the fit.
  """
  num_cells, num_blocks = values.shape
  spare = num_cells - float(leverage.sum())
  each = weights @ values
  if num_blocks < 2:
    return Estimate(float(each.mean()), math.nan, math.nan, 0.0)
  over_blocks = float(np.var(each, ddof=1) / num_blocks)
  over_cells = 0.0
  if spare > 0.5:
    own = (values.mean(1) - fitted) ** 2
    own = own / np.where(leverage < 1 - 1e-9, 1 - leverage, np.inf)
    over_cells = float((weights**2 * own).sum())
  total = over_blocks + over_cells
  squares = over_blocks**2 / (num_blocks - 1)
  squares += over_cells**2 / _freedom(weights, spare)
  freedom = total**2 / squares if squares > 0 else float(num_blocks - 1)
  return Estimate(float(each.mean()), over_blocks, over_cells, freedom)


def _freedom(weights: Array, spare: float) -> float:
  """Degrees of freedom over cells: fewer where few of them have the weight
  (after Bell and McCaffrey 2002)."""
  weights = weights**2
  if not weights.any():
    return 1.0
  equal = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
  return max(spare * float(equal), 1.0)


def mean(values: Array) -> Estimate:
  """Estimates the mean over cells and blocks of [G, B]."""
  weights = np.full(len(values), 1 / len(values))
  return effect(values, weights, np.full(len(values), values.mean()), weights)


def coefficient(values: Array, design: Array, column: int) -> Estimate:
  """Estimates one coefficient of a least-squares fit of values [G, B].

  Args:
    values: per architecture and block.
    design: [G, P].
    column: which coefficient.
  """
  inverse = np.linalg.pinv(design)
  fitted = design @ (inverse @ values.mean(1))
  leverage = (design * inverse.T).sum(1)
  return effect(values, inverse[column], fitted, leverage)


class Networks(NamedTuple):
  """Accuracies of networks that saw the same images column by column.

  Attributes:
    accuracy: [G, S], nan = missing.
    rows: int [G, S], where their hits stand; -1 = not known.
    images: of one fold.
  """

  accuracy: Array
  rows: Array
  images: float


def spread(accuracy: Array) -> tuple[float, int]:
  """Sum of squares over seeds of networks [G, S], freed of what a seed has in
  common, and its degrees of freedom.

  Seeds of one fold see the same images: how hard these are moves all networks
  of a seed alike and says nothing of how they vary. What images do to single
  networks stays in.
  """
  known = ~np.isnan(accuracy)
  with np.errstate(invalid="ignore", divide="ignore"):
    rest = np.where(known, accuracy, 0)
    rest = rest - rest.sum(1, keepdims=True) / known.sum(1, keepdims=True)
    rest = np.where(known, rest, 0)
    common = rest.sum(0) / known.sum(0)
  alone = int(known.sum() - known.any(1).sum())
  freedom = alone - int(known.any(0).sum()) + 1
  if freedom >= known.any(0).sum() - 1 > 0:
    rest = np.where(known, rest - common, 0)
  else:  # networks of one architecture, or of no common seeds
    freedom = alone
  return float((rest**2).sum()), max(freedom, 0)


def image_noise(hits: Hits, rows: Array) -> float | None:
  """What drawing images adds to `spread`, from the hits of networks.

  In every column the networks see the same images; what is left of their hits
  without the means of networks and of images is how they differ about single
  images, and its variance over the number of images is what `spread` holds.

  Args:
    hits: of the study.
    rows: int [G, S], where the hits of each network stand; -1 = not known.

  Returns:
    None where no column has two networks with known hits.
  """
  found = []
  for column in rows.T:
    known = column[column >= 0]
    if len(known) < 2:
      continue
    count = int(hits.images[known[0]])
    seen = np.unpackbits(hits.bits[known], axis=-1, count=count).astype(float)
    seen -= seen.mean(1, keepdims=True)
    seen -= seen.mean(0)
    freedom = (len(known) - 1) * (count - 1)
    found.append((seen**2).sum() / freedom / count)
  return float(np.mean(found)) if found else None


def spread_shown(
  groups: Sequence[Networks], hits: Hits, limit: float, level: float
) -> tuple[bool, bool]:
  """Is the spread of networks shown to be within the limit, to be beyond it?

  Chi-squared bounds of the variance, pooled, less what images do to single
  networks. Where that is not known none of it is taken off for within, and for
  beyond all that drawing the images can do.

  Args:
    groups: networks, each with images of its own.
    hits: of the study.
    limit: standard deviation.
    level: one-sided, of each test.
  """
  squares = freedom = least = most = 0.0
  for group in groups:
    own, count = spread(group.accuracy)
    if not count:
      continue
    noise = image_noise(hits, group.rows)
    share = float(np.nanmean(group.accuracy))
    drawn = share * (1 - share) / group.images if noise is None else noise
    squares, freedom = squares + own, freedom + count
    most += count * drawn
    least += count * (noise or 0.0)
  if not freedom:
    return False, False
  upper = squares / statistics.chi2_quantile(freedom, level)
  lower = squares / statistics.chi2_quantile(freedom, 1 - level)
  within = upper - least / freedom <= limit**2
  return within, lower - most / freedom > limit**2
