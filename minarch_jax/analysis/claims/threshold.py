"""C3: does stable learning begin at a size, on seeds that did not choose it?"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.analysis import minimal
from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.analysis.hits import Hits
from minarch_jax.config import Config

QUESTION = findings.Question(
  "decades of P",
  "minimal_parameters; networks of the arm confirmation",
  "fresh seeds at P_min and at the size below, against the plateau, by fold; "
  "the effect is the width of the transition",
)


class Confirmed(NamedTuple):
  """What fresh seeds say of one (data set, family).

  Attributes:
    at, below: [B] by block, mean minus (plateau - eps_accuracy), of P_min and
      of the size below.
    spread, spread_below: accuracies [S] of the same.
    rows, rows_below: int [S], where their hits stand.
    images: of one fold.
  """

  at: np.ndarray
  below: np.ndarray
  spread: np.ndarray
  spread_below: np.ndarray
  rows: np.ndarray
  rows_below: np.ndarray
  images: float


def minimal_count(found: Evidence, config: Config) -> Finding:
  """At P_min fresh seeds reach the plateau and are stable; below they do not.

  On average over the (data set, family) that have fresh seeds. Supported where
  P_min is shown to reach plateau - eps_accuracy and to vary by at most
  eps_sigma, and the size below is shown not to: by its mean or its spread.
  Contradicted where one of these is shown to be the contrary, or every
  transition to be wider than `sharp_decades`: then no size divides learning
  from not learning. The effect is the width of the widest.
  """
  groups = found["minimal_parameters"]
  widths = minimal.sharpness(
    found.records, config, outcomes=found["outcomes"]
  ).drop_nulls("decades")
  fresh = _confirmed(found, groups, config)
  if not len(widths):
    return findings.nothing(QUESTION, "no family learns in two seeds")
  widest = widths.sort("decades").row(-1, named=True)
  hits = Hits.of(found.arm(records.CONFIRMATION).records.hits)
  verdict = _verdict(list(fresh.values()), hits, config)
  gradual = (widths["decades_low"] > config.sharp_decades).fill_null(False)
  if gradual.all():
    verdict = findings.CONTRADICTED
  elif gradual.any() and verdict == findings.SUPPORTED:
    verdict = findings.UNDECIDED
  note = "; ".join(
    f"{dataset} {family} {f.at.mean() - config.eps_accuracy:+.1%} at P_min, "
    f"{f.below.mean() - config.eps_accuracy:+.1%} below"
    for (dataset, family), f in fresh.items()
  )
  if widest["open"]:
    note += "; the transition begins below the smallest size"
  now, then = _powers(list(fresh.values()), config)
  if verdict == findings.UNDECIDED:
    note += "; " + (
      findings.remedy(
        now, then, "a P_min half of eps_accuracy inside", "--design=full"
      )
      if fresh
      else _open(groups)
    )
  n = sum(f.spread.size + f.spread_below.size for f in fresh.values())
  return Finding(
    widest["decades"],
    widest["decades_low"],
    widest["decades_high"],
    n or len(groups),
    verdict,
    *QUESTION,
    now,
    note.removeprefix("; "),
  )


def _mean(values: list[np.ndarray]) -> blocks.Estimate:
  """The mean over families, which are these and no sample, over blocks."""
  return blocks.mean(np.mean(values, axis=0)[None])


def _verdict(fresh: list[Confirmed], hits: Hits, config: Config) -> str:
  if not fresh:
    return findings.UNDECIDED
  level = (1 - config.confidence) / 2

  def ends(name: str, level: float) -> tuple[float, float]:
    return _mean([getattr(f, name) for f in fresh]).interval(1 - 2 * level)

  def spread(below: str, level: float) -> tuple[bool, bool]:
    rows = blocks.Networks(
      _rows([getattr(f, f"spread{below}") for f in fresh], np.nan),
      _rows([getattr(f, f"rows{below}") for f in fresh], -1),
      min(f.images for f in fresh),
    )
    return blocks.spread_shown([rows], hits, config.eps_sigma, level)

  # Two ways not to be learned stably, three ways to contradict.
  _, high = ends("below", level / 2)
  _, loose = spread("_below", level / 2)
  reached, _ = ends("at", level)
  steady, _ = spread("", level)
  if reached > 0 and steady and (high < 0 or loose):
    return findings.SUPPORTED
  _, missed = ends("at", level / 3)
  _, loose = spread("", level / 3)
  low, _ = ends("below", level / 3)
  steady, _ = spread("_below", level / 3)
  if missed < 0 or loose or (low > 0 and steady):
    return findings.CONTRADICTED
  return findings.UNDECIDED


def _rows(values: list[np.ndarray], missing: float) -> np.ndarray:
  """[F, S]; seeds that a family lacks are missing."""
  shape = (len(values), max(v.size for v in values))
  rows = np.full(shape, missing, values[0].dtype)
  for row, own in zip(rows, values, strict=True):
    row[: own.size] = own
  return rows


def _powers(fresh: list[Confirmed], config: Config) -> tuple[float, float]:
  """Power to show that P_min reaches, if halfway into the tolerance; and with
  twice the fresh seeds."""
  if not fresh:
    return 0.0, 0.0
  estimate = _mean([f.at for f in fresh])
  now, then = (
    estimate.power(config.eps_accuracy / 2, config.confidence, more)
    for more in (1.0, 2.0)
  )
  return now, then


def _confirmed(
  found: Evidence, groups: pl.DataFrame, config: Config
) -> dict[tuple[str, str], Confirmed]:
  """Per (data set, family) that has fresh seeds at P_min and below it."""
  main, arm = found["outcomes"], found.arm(records.CONFIRMATION)["outcomes"]
  result = {}
  for row in groups.drop_nulls("p_min").iter_rows(named=True):
    own = pl.col("dataset") == row["dataset"], pl.col("family") == row["family"]
    largest: Any = main.filter(*own)["params"].max()
    if largest <= row["p_min"] * (1 + config.match_tolerance):
      continue  # one size is no plateau
    fresh = arm.filter(*own)
    at = fresh.filter(architecture=row["architecture"])
    under = fresh.filter(
      pl.col("params") < row["p_min"] / (1 + config.match_tolerance)
    )
    below = under.filter(pl.col("params") == pl.col("params").max())
    if not len(at) or not len(below):
      continue
    level = _plateau(main.filter(*own), config) - config.eps_accuracy
    means = [
      blocks.matrix(part, part, ("architecture",), "val_accuracy")[1]
      for part in (at, below)
    ]
    if any(m.shape != (1, len(level)) for m in means):
      continue
    result[row["dataset"], row["family"]] = Confirmed(
      *(m[0] - level for m in means),
      *(
        p.sort("seed")[name].to_numpy()
        for name in ("val_accuracy", "row")
        for p in (at, below)
      ),
      images=float(at["num_validation"].max()),  # pyright: ignore
    )
  return result


def _plateau(rows: pl.DataFrame, config: Config) -> np.ndarray:
  """The plateau of the main arm: pseudo-values by block."""
  known = rows.join(blocks.of_networks(rows), on=["dataset", "seed"])
  parts = [
    known,
    *(
      known.filter(pl.col("block") != b) for b in known["block"].unique().sort()
    ),
  ]
  values = [minimal.plateau(minimal.grid(part, config)) for part in parts]
  return blocks.leave_one_out(np.array(values[:1]), np.array([values[1:]]))[0]


def _open(groups: pl.DataFrame) -> str:
  status = ", ".join(
    f"{row['dataset']} {row['family']} "
    + (f"{row['p_min']:,.0f}" if row["p_min"] else row["status"])
    for row in groups.head(12).iter_rows(named=True)
  )
  return (
    f"P_min: {status}; fresh seeds at P_min and below it would decide (the arm "
    "confirmation; a grid that reaches below and beyond it)"
  )
