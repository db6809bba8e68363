"""Pairs of architectures matched in size, and what their differences say."""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import statistics
from minarch_jax.analysis.regimes import STABLE

Array = np.ndarray


class Contrast(NamedTuple):
  """The mean difference between two kinds of architectures of equal size.

  Attributes:
    name: what is compared, "cnn - dnn" or "dnn depth 4 - 1".
    mean, low, high: over pairs; low, high from whichever of seeds and pairs
      is the less certain.
    p_equivalent: two one-sided tests at the margin, likewise.
    excess: standard deviation of the pairs' true differences.
    beyond: [pairs] p-values that a pair differs by more than the margin.
  """

  name: str
  mean: float
  low: float
  high: float
  p_equivalent: float
  excess: float
  beyond: Array


def matched(a: Array, b: Array, tolerance: float) -> list[tuple[int, int]]:
  """Pairs sizes one to one, nearest first, within a relative tolerance.

  Args:
    a: [N] parameter counts.
    b: [M] parameter counts.
    tolerance: largest (larger / smaller - 1).

  Returns:
    Index pairs (into a, into b), sorted.
  """
  order = np.argsort(b, kind="stable")
  low = np.searchsorted(b[order], a / (1 + tolerance), "left")
  high = np.searchsorted(b[order], a * (1 + tolerance), "right")
  candidates = sorted(
    (abs(np.log(a[i] / b[j])), i, int(j))
    for i in range(len(a))
    for j in order[low[i] : high[i]][:64]
  )
  used_a, used_b, pairs = set(), set(), []
  for _, i, j in candidates:
    if i not in used_a and j not in used_b:
      used_a.add(i)
      used_b.add(j)
      pairs.append((i, j))
  return sorted(pairs)


def kinds(labels: pl.DataFrame) -> Iterator[tuple[str, pl.Expr, pl.Expr]]:
  """The contrasts of shape: between families, and between depths of one."""
  families = labels["family"].unique().sort().to_list()
  for one, other in itertools.combinations(families, 2):
    yield (
      f"{other} - {one}",
      pl.col("family") == one,
      pl.col("family") == other,
    )
  for family in families:
    own = pl.col("family") == family
    depths = labels.filter(own)["depth"].unique().sort().to_list()
    for one, other in itertools.combinations(depths, 2):
      yield (
        f"{family} depth {other} - {one}",
        own & (pl.col("depth") == one),
        own & (pl.col("depth") == other),
      )


def contrasts(
  labels: pl.DataFrame,
  accuracy: Array,
  tolerance: float,
  margin: float,
  confidence: float,
  images: float | None = None,
) -> list[Contrast]:
  """Compares every two kinds over pairs matched in size on one data set.

  Args:
    labels: [G] rows of `regimes`, in the order of `accuracy`.
    accuracy: [G, S] by seed, nan = missing.
    tolerance: of the match.
    margin: of the equivalence tests.
    confidence: of the intervals.
    images: on which the accuracies were measured.

  Returns:
    Contrasts of at least two pairs. Pairs of which both are unstable say
    nothing about what was learned and are left out.
  """
  rows = labels.with_row_index("_row")
  found = []
  for name, one, other in kinds(labels):
    differences = []
    for dataset in labels["dataset"].unique().sort():
      here = rows.filter(pl.col("dataset") == dataset)
      a, b = here.filter(one), here.filter(other)
      stable = here.select(STABLE).to_series().to_numpy()
      stable = dict(zip(here["_row"], stable, strict=True))
      for i, j in matched(
        a["params"].to_numpy(), b["params"].to_numpy(), tolerance
      ):
        left, right = a["_row"][i], b["_row"][j]
        if stable[left] or stable[right]:
          differences.append(accuracy[right] - accuracy[left])
    if len(differences) > 1:
      found.append(
        _contrast(name, np.array(differences), margin, confidence, images)
      )
  return found


def _contrast(
  name: str,
  differences: Array,
  margin: float,
  confidence: float,
  images: float | None,
) -> Contrast:
  n, mean, deviation = statistics.moments(differences)
  kept = n > 0
  differences, n, mean = differences[kept], n[kept], mean[kept]
  with np.errstate(invalid="ignore"):
    noise = np.nan_to_num(deviation[kept] ** 2 / n).mean()
    by_seed = np.nanmean(
      np.where(np.isnan(differences).all(0), 0.0, differences), 0
    )
  bounds, p_values = [], []
  for sample in (mean, by_seed):
    _, low, high, _ = statistics.mean_interval(
      sample, confidence, images=images
    )
    count, middle, spread = statistics.moments(sample)
    bounds.append((low, high))
    p_values.append(
      float(statistics.tost(middle, spread, count, margin, images))
    )
  low = min(bound[0] for bound in bounds)
  high = max(bound[1] for bound in bounds)

  def one_sided(side):
    return statistics.one_sided_p(side, deviation[kept], n, -margin, images)

  excess = np.sqrt(max(np.var(mean, ddof=1) - noise, 0.0))
  return Contrast(
    name,
    float(mean.mean()),
    float(low),
    float(high),
    max(p_values),
    float(excess),
    np.minimum(2 * np.minimum(one_sided(-mean), one_sided(mean)), 1.0),
  )
