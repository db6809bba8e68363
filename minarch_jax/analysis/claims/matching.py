"""Pairs of architectures matched in size, and what their differences say."""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis.claims import blocks
from minarch_jax.analysis.regimes import STABLE

Array = np.ndarray


class Contrast(NamedTuple):
  """The mean difference of two kinds of architectures of equal size, "cnn -
  dnn" or "dnn depth 4 - 1"."""

  name: str
  difference: blocks.Estimate


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
  labels: pl.DataFrame, accuracy: Array, tolerance: float
) -> list[Contrast]:
  """Compares every two kinds over pairs matched in size on one data set.

  Args:
    labels: [G] rows of `regimes`, in the order of `accuracy`.
    accuracy: [G, B] by block.
    tolerance: of the match.

  Returns:
    Contrasts of at least two pairs. Pairs of which both are unstable say
    nothing about what was learned and are left out.
  """
  rows = labels.with_row_index("_row").with_columns(stable=STABLE)
  found = []
  for name, one, other in kinds(labels):
    differences = []
    for _, here in rows.group_by("dataset", maintain_order=True):
      a, b = here.filter(one), here.filter(other)
      for i, j in matched(
        a["params"].to_numpy(), b["params"].to_numpy(), tolerance
      ):
        if a["stable"][i] or b["stable"][j]:
          differences.append(accuracy[b["_row"][j]] - accuracy[a["_row"][i]])
    if len(differences) > 1:
      found.append(Contrast(name, blocks.mean(np.array(differences))))
  return found
