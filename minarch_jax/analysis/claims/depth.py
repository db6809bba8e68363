"""C5: do deeper networks of equal size stand more pruning?"""

from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import pruning, tables
from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

Array = np.ndarray
DECIDES = "half loss"  # agrees between image sets at 0.99, redundancy at 0.89
QUESTION = findings.Question(
  "sparsity per doubling of depth",
  "compression: one-shot magnitude, stable only",
  "slope along log2 depth within data set, family and size; the sparsity at "
  "half loss decides, area and redundancy stand beside",
)


class Curves(NamedTuple):
  """Drops of accuracy along sparsity, by block.

  Attributes:
    groups: [G] architectures.
    sparsities: [K] increasing, the first 0.
    drop: [G, B, K].
    above: [G, B] accuracy above chance without pruning.
  """

  groups: pl.DataFrame
  sparsities: Array
  drop: Array
  above: Array


def depth_resists(found: Evidence, config: Config) -> Finding:
  """The sparsity at which half of the accuracy is lost grows with depth.

  Slope along log2 depth over architectures, every (data set, family, size) with
  a level of its own; sizes match within `match_tolerance`.
  """
  effects, count = _effects(found, "oneshot", config)
  if not effects:
    return findings.nothing(
      QUESTION,
      "no (data set, family) has stable architectures of one size and several "
      "depths that were pruned; --grid=ladder has them",
    )
  effect = effects.pop(DECIDES)
  note = _told(effects, config)
  if retrained := _effects(found, "finetune", config)[0]:
    note += "; retrained: " + _told(retrained, config)
  return findings.judged(
    QUESTION, effect, count, config.depth_effect, config, note=note
  )


def _told(effects: dict[str, blocks.Estimate], config: Config) -> str:
  return ", ".join(
    findings.beside(name, estimate, config)
    for name, estimate in effects.items()
  )


def _effects(
  found: Evidence, schedule: str, config: Config
) -> tuple[dict[str, blocks.Estimate], int]:
  """The effect on every measure, and how many architectures it is from; {}
  where no size has two depths."""
  curves = _curves(found, schedule)
  if not len(curves.groups) or curves.above.shape[1] < 2:
    return {}, 0
  rows, design = _design(curves.groups, config)
  if len(rows) <= design.shape[1]:
    return {}, 0
  return {
    name: blocks.coefficient(values[rows], design, 0)
    for name, values in measures(curves, config).items()
  }, len(rows)


def _design(groups: pl.DataFrame, config: Config) -> tuple[Array, Array]:
  """Rows of the sizes of families that have several depths, and columns: log2
  depth, and one for every size of a family."""
  found, cells, depths = [], [], []
  rows = groups.with_row_index("_row").sort("dataset", "family", "params")
  for _, family in rows.group_by("dataset", "family", maintain_order=True):
    sizes = tables.size_classes(
      family["params"].to_numpy(), config.match_tolerance
    )
    for size in np.unique(sizes):
      own = family.filter(sizes == size)
      if own["depth"].n_unique() > 1:
        found += own["_row"].to_list()
        depths += own["depth"].to_list()
        cells += [cells[-1] + 1 if cells else 0] * len(own)
  columns = np.array(cells)[:, None] == np.unique(cells)
  return np.array(found, int), np.concatenate(
    [np.log2(np.array(depths, float))[:, None], columns], 1
  )


def _curves(found: Evidence, schedule: str) -> Curves:
  """Drops of stable architectures, magnitude, element-wise, in one scope."""
  networks = found["outcomes"].filter(~pl.col("failed"))
  labels = findings.stable(found).select(tables.ARCHITECTURE)
  rows = (
    tables.under(found.records.compression)
    .filter(tables.AS_TRAINED & (pl.col("schedule") == schedule))
    .join(networks.select(tables.NETWORK), on=tables.NETWORK, how="semi")
    .join(labels, on=tables.ARCHITECTURE, how="semi")
  )
  chance = networks.group_by("dataset").agg(pl.col("chance").max())
  keys = [*tables.ARCHITECTURE, "seed"]
  dense = (
    rows.filter(sparsity=0.0)
    .group_by(keys)
    .agg(dense=pl.col("val_accuracy").mean())
    .join(chance, on="dataset")
    .with_columns(above=pl.col("dense") - pl.col("chance"))
  )
  groups, above = blocks.matrix(dense, networks, tables.ARCHITECTURE, "above")
  pruned = findings.primary(rows.filter(pl.col("sparsity") > 0))
  pruned = pruned.join(dense, on=keys, how="inner").with_columns(
    drop=pl.col("dense") - pl.col("val_accuracy")
  )
  sparsities = pruned["sparsity"].unique().sort().to_numpy()
  drop = np.zeros((*above.shape, len(sparsities) + 1))
  whole = np.ones(len(groups), bool)
  for k, sparsity in enumerate(sparsities):
    at = pruned.filter(pl.col("sparsity") == sparsity)
    here, values = blocks.matrix(at, networks, tables.ARCHITECTURE, "drop")
    index = groups.join(
      here.with_row_index("_row"),
      on=list(tables.ARCHITECTURE),
      how="left",
      maintain_order="left",
    )["_row"]
    there = index.is_not_null().to_numpy()
    whole &= there
    drop[there, :, k + 1] = values[index.drop_nulls().to_numpy()]
  return Curves(
    groups.filter(whole),
    np.append(0.0, sparsities),
    drop[whole],
    above[whole],
  )


def measures(curves: Curves, config: Config) -> dict[str, Array]:
  """Half-loss sparsity, area under the retained accuracy, and redundancy.

  Returns:
    Pseudo-values [G, B] each. A curve that the grid of sparsities ends before
    has the last sparsity.
  """
  num_groups, num_blocks, num_sparsities = curves.drop.shape
  total = curves.drop.sum(1, keepdims=True)
  drop = np.concatenate(
    [total / num_blocks, (total - curves.drop) / max(num_blocks - 1, 1)], 1
  ).reshape(-1, num_sparsities)
  summed = curves.above.sum(1, keepdims=True)
  above = np.concatenate(
    [summed / num_blocks, (summed - curves.above) / max(num_blocks - 1, 1)], 1
  ).ravel()
  at = curves.sparsities
  rising = pruning.fitted(drop, np.ones_like(drop))

  def crossing(level: Array) -> Array:
    good = rising <= level[:, None] + tables.TIE
    last, after = pruning.bracket(at, good, np.ones_like(good))
    return pruning.interpolated(at, rising, level, last, after)

  retained = 1 - drop / above[:, None]
  found = {
    DECIDES: crossing(config.collapse_share * above),
    "area": np.trapezoid(retained, at, axis=1) / np.ptp(at),
    "redundancy": crossing(np.full(len(drop), config.free_margin)),
  }
  shaped = {
    name: values.reshape(num_groups, num_blocks + 1)
    for name, values in found.items()
  }
  return {
    name: blocks.leave_one_out(values[:, 0], values[:, 1:])
    for name, values in shaped.items()
  }
