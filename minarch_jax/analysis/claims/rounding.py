"""C7 and C8: which networks does rounding the weights hurt more?"""

from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.analysis import quantization, tables
from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

Array = np.ndarray
RULE = (
  "at the fewest bits at which half of the networks keep more than half of "
  "their accuracy above chance (below all are at the floor)"
)
SMALL = findings.Question(
  "accuracy per decade of P",
  "quantization: damage of dense, stable networks",
  f"slope of damage along log10 P within data set and family, {RULE}",
)
HARD = findings.Question(
  "share of accuracy above chance",
  "quantization: damage of dense, stable networks; those of the arm harder",
  "difference of damage / accuracy above chance between data sets at one P / "
  f"P_min, families having a level of their own, {RULE}",
)


class Damages(NamedTuple):
  """Damage of dense, stable networks, one row per seed and number of bits.

  Attributes:
    rows: architecture, seed, bits, damage, relative (to accuracy above chance).
    networks: whose outcomes say which fold a seed has.
    granularity: what shares a scale.
  """

  rows: pl.DataFrame
  networks: pl.DataFrame
  granularity: str


def _damages(found: Evidence, config: Config) -> Damages:
  """Per seed: what rounding to every number of bits takes."""
  networks = found["outcomes"]
  rows = quantization.paired_damage(found.records, config)
  rows = tables.primary(rows, ("quant_granularity",))
  rows = rows.join(
    findings.stable(found).select(tables.ARCHITECTURE),
    on=tables.ARCHITECTURE,
    how="semi",
  ).join(
    networks.select(
      *tables.ARCHITECTURE,
      "seed",
      above=pl.col("val_accuracy") - pl.col("chance"),
    ),
    on=[*tables.ARCHITECTURE, "seed"],
    how="inner",
  )
  names = rows["quant_granularity"].unique().to_list()
  return Damages(
    rows.with_columns(relative=pl.col("damage") / pl.col("above")),
    networks,
    names[0] if names else "",
  )


def deciding_bits(rows: pl.DataFrame, config: Config) -> int:
  """The fewest bits at which, in the median over architectures, at most
  `collapse_share` of the accuracy above chance is lost; the most there are
  where none is so mild."""
  losses = (
    rows.group_by(*tables.ARCHITECTURE, "bits")
    .agg(pl.col("relative").mean())
    .group_by("bits")
    .agg(pl.col("relative").median())
    .sort("bits")
  )
  mild = losses.filter(pl.col("relative") <= config.collapse_share)["bits"]
  return int(mild[0] if len(mild) else losses["bits"][-1])


def small_suffer(found: Evidence, config: Config) -> Finding:
  """Damage falls as log10 P grows.

  The number of bits is chosen by how much is lost on the whole, whatever the
  slope; the other numbers stand beside.
  """
  damages = _damages(found, config)
  slopes = {
    bits: _slope(damages, bits)
    for bits in sorted(damages.rows["bits"].unique().to_list())
  }
  known = {bits: found for bits, found in slopes.items() if found is not None}
  bits = deciding_bits(damages.rows, config) if known else 0
  if bits not in known:
    return findings.nothing(
      SMALL, "no family has three stable architectures of several sizes"
    )
  estimate, n = known.pop(bits)
  note = f"{bits} bits per {damages.granularity}"
  for other, (slope, _) in known.items():
    note += "; " + findings.beside(f"{other} bits", slope, config)
  return findings.judged(
    SMALL,
    estimate,
    n,
    config.damage_effect,
    config,
    note=note,
    falls=True,
  )


def _slope(damages: Damages, bits: int) -> tuple[blocks.Estimate, int] | None:
  """The slope of damage along log10 P, and of how many architectures."""
  groups, values = blocks.matrix(
    damages.rows.filter(pl.col("bits") == bits),
    damages.networks,
    tables.ARCHITECTURE,
    "damage",
  )
  # A family of one or two architectures has no scatter and would look certain.
  many = groups.select(pl.len().over("dataset", "family") > 2).to_series()
  groups, values = groups.filter(many), values[many.to_numpy()]
  if not len(groups) or values.shape[1] < 2:
    return None
  size = groups["params"].log10().to_numpy()
  design = np.concatenate([size[:, None], _dummies(groups)], 1)
  spare = len(groups) - design.shape[1]
  if spare < 2 or np.linalg.matrix_rank(design) < design.shape[1]:
    return None
  return blocks.coefficient(values, design, 0), len(groups)


def _dummies(groups: pl.DataFrame) -> Array:
  """One column per (data set, family)."""
  names = (groups["dataset"] + " " + groups["family"]).to_numpy()
  return (names[:, None] == np.unique(names)).astype(float)


def hard_suffer(found: Evidence, config: Config) -> Finding:
  """At one P / P_min a larger share of accuracy is lost on harder data.

  Data sets are ordered by the best accuracy reached on them, their rank is
  what counts; the arm `harder` is one of them. Damage is a line in log P /
  P_min, every family at a level of its own, over the range that all its data
  sets have.
  """
  sides = [found, found.arm(records.HARDER)]
  outcomes = pl.concat([side["outcomes"] for side in sides])
  order = tables.by_difficulty(outcomes)
  if len(order) < 2:
    return findings.nothing(
      HARD,
      "one data set; a second, harder one would decide (the arm harder, or "
      "--datasets)",
    )
  parts = [_damages(side, config) for side in sides]
  rows = pl.concat([part.rows for part in parts])
  minimal = pl.concat([side["minimal_parameters"] for side in sides])
  note = " < ".join(order)
  if rows.is_empty():
    return findings.nothing(HARD, f"{note}; no damage of stable networks")
  bits = deciding_bits(rows, config)
  located = _located(rows.filter(pl.col("bits") == bits), minimal, order)
  groups, values = blocks.matrix(
    located, outcomes, (*tables.ARCHITECTURE, "place", "rank"), "relative"
  )
  groups, values = _overlapping(groups, values)
  if len(groups) < 6 or values.shape[1] < 2:
    return findings.nothing(
      HARD,
      f"{note}; no family has a P_min and stable architectures at one P / "
      "P_min on two data sets; more sizes would decide",
    )
  estimate = _difference(groups, values, minimal, config)
  note += f"; {bits} bits per {parts[0].granularity}"
  return findings.judged(
    HARD,
    estimate,
    len(groups),
    config.damage_effect,
    config,
    note=note,
    # Twice the architectures of one of two sets.
    cure=findings.Cure("--design=full", cells=1.5),
  )


def _located(
  rows: pl.DataFrame, minimal: pl.DataFrame, order: tuple[str, ...]
) -> pl.DataFrame:
  """Adds the place, log10 P / P_min, and the rank of the data set."""
  known = minimal.drop_nulls("p_min").select("dataset", "family", "p_min")
  ranks = pl.DataFrame({"dataset": order, "rank": range(len(order))})
  return (
    rows.join(known, on=["dataset", "family"], how="inner")
    .join(ranks, on="dataset", how="inner")
    .with_columns(place=(pl.col("params") / pl.col("p_min")).log10())
  )


def _overlapping(
  groups: pl.DataFrame, values: Array
) -> tuple[pl.DataFrame, Array]:
  """Keeps the range of places that all data sets of a family have."""
  ends = groups.group_by("dataset", "family").agg(
    low=pl.col("place").min(), high=pl.col("place").max()
  )
  common = ends.group_by("family").agg(
    pl.col("low").max(), pl.col("high").min(), sets=pl.len()
  )
  where = groups.join(common, on="family", how="left", maintain_order="left")
  room = 0.2  # decades: no two ladders have their rungs at the same places
  kept = where.select(
    (pl.col("sets") > 1)
    & pl.col("place").is_between(pl.col("low") - room, pl.col("high") + room)
  ).to_series()
  groups, values = groups.filter(kept), values[kept.to_numpy()]
  both = groups.select(
    pl.col("dataset").n_unique().over("family") > 1
  ).to_series()
  return groups.filter(both), values[both.to_numpy()]


def _difference(
  groups: pl.DataFrame, values: Array, minimal: pl.DataFrame, config: Config
) -> blocks.Estimate:
  """The effect of the rank of the data set, and its variance.

  An error of P_min shifts all places of a family and data set: it moves the
  effect by weight times slope times its log, and is added.
  """
  families = groups["family"].to_numpy()
  own = (families[:, None] == np.unique(families)).astype(float)
  place = groups["place"].to_numpy()[:, None]
  rank = groups["rank"].to_numpy()[:, None].astype(float)
  design = np.concatenate([rank, place, own], 1)
  estimate = blocks.coefficient(values, design, 0)
  fit = np.linalg.pinv(design)
  slope = fit[1] @ values.mean(1)
  variance = 0.0
  quantile = 2 * 1.96
  for (dataset, family), part in groups.with_row_index("_row").group_by(
    "dataset", "family", maintain_order=True
  ):
    known = minimal.filter(dataset=dataset, family=family).row(0, named=True)
    low, high = known["p_min_low"], known["p_min_high"]
    low = low or known["p_min"]
    high = high or known["p_min"]
    at = part["_row"].to_numpy()
    shift = fit[0, at].sum() * slope
    variance += (shift * np.log10(high / low) / quantile) ** 2
  return estimate._replace(over_cells=estimate.over_cells + float(variance))
