"""C3: does stable learning begin at a size, on seeds that did not choose it?"""

from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import minimal
from minarch_jax.analysis.claims import arms, blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
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
    at, below: mean minus (plateau - eps_accuracy), of P_min and of the size
      below.
    spread: accuracies [1, S] at P_min; `spread_below` below.
    images: of one fold.
  """

  at: blocks.Estimate
  below: blocks.Estimate
  spread: np.ndarray
  spread_below: np.ndarray
  images: float


def minimal_count(found: Evidence, config: Config) -> Finding:
  """At P_min fresh seeds reach the plateau and are stable; below they do not.

  Supported where in every (data set, family) with fresh seeds P_min reaches
  plateau - eps_accuracy, the size below does not (or varies by more than
  eps_sigma), and networks at P_min vary by at most eps_sigma, pooled over
  families. Contradicted where in every family fresh seeds say the contrary,
  or the transition is shown to be wider than `sharp_decades`: then no size
  divides learning from not learning. The effect is the width of the widest.
  """
  groups = found["minimal_parameters"]
  widths = minimal.sharpness(
    found.records, config, outcomes=found["outcomes"]
  ).drop_nulls("decades")
  fresh = _confirmed(found, groups, config)
  if not len(widths):
    return findings.nothing(QUESTION, "no family learns in two seeds")
  widest = widths.sort("decades").row(-1, named=True)
  level = (1 - config.confidence) / 2
  verdict = _verdict(fresh, level, config)
  gradual = (widths["decades_low"] > config.sharp_decades).fill_null(False)
  if gradual.all():
    verdict = findings.CONTRADICTED
  elif gradual.any() and verdict == findings.SUPPORTED:
    verdict = findings.UNDECIDED
  n = sum(f.spread.size + f.spread_below.size for f in fresh.values())
  note = "; ".join(
    f"{dataset} {family} {f.at.value - config.eps_accuracy:+.1%} at P_min, "
    f"{f.below.value - config.eps_accuracy:+.1%} below"
    for (dataset, family), f in fresh.items()
  )
  if widest["open"]:
    note += "; the transition begins below the smallest size"
  powers = [
    f.at.power(config.eps_accuracy, config.confidence) for f in fresh.values()
  ]
  power = float(np.prod(powers)) if powers else None
  if verdict == findings.UNDECIDED:
    note += "; " + _open(fresh, groups, power)
  interval = (widest["decades_low"], widest["decades_high"])
  return Finding(
    widest["decades"],
    *interval,
    n or len(groups),
    verdict,
    *QUESTION,
    power,
    note.removeprefix("; "),
  )


def _verdict(
  fresh: dict[tuple[str, str], Confirmed], level: float, config: Config
) -> str:
  if not fresh:
    return findings.UNDECIDED
  confirmed, refuted = [], []
  for f in fresh.values():
    at_low, at_high = f.at.interval(config.confidence)
    low, high = f.below.interval(1 - level)  # one of two ways not to reach
    steady, loose = blocks.spread_shown(
      f.spread, f.images, config.eps_sigma, level / 2
    )
    steady_below, loose_below = blocks.spread_shown(
      f.spread_below, f.images, config.eps_sigma, level / 2
    )
    confirmed.append(at_low > 0 and (high < 0 or loose_below))
    refuted.append(at_high < 0 or loose or (low > 0 and steady_below))
  if all(refuted):
    return findings.CONTRADICTED
  if all(confirmed) and _steady(fresh, level, config):
    return findings.SUPPORTED
  return findings.UNDECIDED


def _steady(
  fresh: dict[tuple[str, str], Confirmed], level: float, config: Config
) -> bool:
  """Is the spread at P_min, pooled over families, shown within eps_sigma?"""
  num = max(f.spread.size for f in fresh.values())
  whole = np.full((len(fresh), num), np.nan)
  for i, f in enumerate(fresh.values()):
    whole[i, : f.spread.size] = f.spread
  images = min(f.images for f in fresh.values())
  return blocks.spread_shown(whole, images, config.eps_sigma, level)[0]


def _confirmed(
  found: Evidence, groups: pl.DataFrame, config: Config
) -> dict[tuple[str, str], Confirmed]:
  """Per (data set, family) that has fresh seeds at P_min and below it."""
  main, arm = found["outcomes"], found.arm(arms.CONFIRMATION)["outcomes"]
  result = {}
  for row in groups.drop_nulls("p_min").iter_rows(named=True):
    own = pl.col("dataset") == row["dataset"], pl.col("family") == row["family"]
    fresh = arm.filter(*own)
    at = fresh.filter(architecture=row["architecture"])
    under = fresh.filter(
      pl.col("params") < row["p_min"] / (1 + config.match_tolerance)
    )
    below = under.filter(pl.col("params") == under["params"].max())
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
      blocks.mean(means[0] - level),
      blocks.mean(means[1] - level),
      *(p.sort("seed")["val_accuracy"].to_numpy()[None] for p in (at, below)),
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


def _open(
  fresh: dict[tuple[str, str], Confirmed],
  groups: pl.DataFrame,
  power: float | None,
) -> str:
  if not fresh:
    status = ", ".join(
      f"{row['dataset']} {row['family']} "
      + (f"{row['p_min']:,.0f}" if row["p_min"] else row["status"])
      for row in groups.head(12).iter_rows(named=True)
    )
    return (
      f"P_min: {status}; fresh seeds at P_min and below it would decide (the "
      "arm confirmation; a grid that reaches below)"
    )
  return (
    "not confirmed in all families; one that is eps_accuracy above the limit "
    f"is in {power:.0%} of such studies, more often with more fresh seeds "
    "(--design=full)"
  )
