"""C1: is it the parameters or the architecture that governs accuracy?"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import polars as pl

from minarch_jax.analysis import statistics, tables
from minarch_jax.analysis.claims import blocks, findings, matching
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.config import Config

Array = np.ndarray
CURVE = 3  # degree of the curve in log P: all that four sizes can tell
FACTORS: tuple[str, ...] = ("parameters", "family", "depth")
QUESTION = findings.Question(
  "share of variance",
  "networks: accuracy by fold",
  "variance of logit accuracy between sizes and, at one size, between shapes; "
  "products of different folds hold no noise",
)


class Shares(NamedTuple):
  """Systematic variance of logit accuracy: products [B, B] of blocks.

  Attributes:
    parts: per factor, and "rest": what log P does to one shape and not to
      another.
    low, high: bounds of the share of the parameters.
  """

  parts: dict[str, Array]
  low: float
  high: float

  def of(self, name: str) -> float:
    return float(np.nanmean(self.parts[name]))

  @property
  def total(self) -> float:
    return sum(map(self.of, self.parts))

  @property
  def value(self) -> float:
    share = self.of("parameters") / self.total if self.total > 0 else 0.5
    return float(np.clip(share, self.low, self.high))


def invariance(found: Evidence, config: Config) -> Finding:
  """Parameters explain more of the variance of accuracy than architecture.

  Architecture is what remains between networks of one size: family, depth and
  what sizes do to one shape and not to another. Beside it the equivalence of
  shapes matched in size, of at least P_min, is told.
  """
  labels, logits, accuracy = _cells(found, config)
  if len(labels) < 6 or logits.shape[1] < 3:
    return findings.nothing(
      QUESTION,
      "six architectures that learn and three folds or seeds are needed",
    )
  found_shares = shares(labels, logits, config.confidence)
  value = found_shares.value
  limit = config.governing_share
  verdict = findings.decided(found_shares.low, found_shares.high, limit)
  note = ", ".join(
    f"{name} {found_shares.of(name) / max(found_shares.total, 1e-12):.0%}"
    for name in found_shares.parts
  )
  note += "; " + _equivalence(found, labels, accuracy, config)
  now, then = (_power(found_shares, limit, config, more) for more in (1.0, 2.0))
  if verdict == findings.UNDECIDED:
    what = f"a share of {(1 + limit) / 2:.0%}"
    note += "; " + findings.remedy(
      now, then, what, "twice the seeds and --folds (--num_seeds)"
    )
  return Finding(
    value,
    found_shares.low,
    found_shares.high,
    len(labels),
    verdict,
    *QUESTION,
    now,
    note,
  )


def _cells(
  found: Evidence, config: Config
) -> tuple[pl.DataFrame, Array, Array]:
  """Architectures that learn, with logit accuracy and accuracy [G, B]."""
  rows = found["outcomes"]
  by = tables.ARCHITECTURE
  groups, accuracy = blocks.matrix(rows, rows, by, "val_accuracy")
  labels = groups.join(
    found["regimes"], on=list(by), how="left", maintain_order="left"
  )
  kept = (labels["p_unstable"] <= config.max_failed).to_numpy()
  images = tables.images_of(groups, rows)[kept, None]
  accuracy = accuracy[kept]
  hits = accuracy * images
  logits = np.log((hits + 0.5) / (images - hits + 0.5))
  return labels.filter(kept), logits, accuracy


def shares(labels: pl.DataFrame, logits: Array, confidence: float) -> Shares:
  """Divides the variance of logit accuracy among the factors.

  A factor's part is what it adds to those before it, averaged over all orders
  (Shapley). Every part is a quadratic form y' M y; taken between two blocks,
  y_s' M y_t, noise has the mean zero, because blocks are independent. The
  interval inverts tests of "the share is r", each over all pairs of blocks
  (Fieller's way with `statistics.pair_interval`).

  Args:
    labels: [G] dataset, family, depth, params.
    logits: [G, B].
    confidence: of the interval.
  """
  num_blocks = logits.shape[1]
  parts = {name: np.zeros((num_blocks,) * 2) for name in (*FACTORS, "rest")}
  rows = labels.with_row_index("_row")
  for _, group in rows.group_by("dataset", maintain_order=True):
    own = logits[group["_row"].to_numpy()]
    for name, form in _forms(group).items():
      parts[name] += own.T @ form @ own
  for values in parts.values():
    np.fill_diagonal(values, np.nan)
  one = parts["parameters"]
  other = sum(v for name, v in parts.items() if name != "parameters")
  tried = np.linspace(0, 1, 401)
  level = tried[:, None, None]
  _, low, high, _ = statistics.pair_interval(
    (1 - level) * one - level * other, confidence
  )
  held = tried[(low <= 0) & (high >= 0)]
  if not len(held):
    held = tried[-1:] if np.nanmean(other) < 0 else tried[:1]
  return Shares(parts, float(held.min()), float(held.max()))


def _forms(group: pl.DataFrame) -> dict[str, Array]:
  """Quadratic forms [G, G] of the factors' parts, and of the rest."""
  columns = _columns(group)

  def projection(names: tuple[str, ...]) -> Array:
    design = np.concatenate(
      [np.ones((len(group), 1)), *(columns[name] for name in names)], axis=1
    )
    return design @ np.linalg.pinv(design)

  known = {
    names: projection(names)
    for size in range(len(FACTORS) + 1)
    for names in itertools.combinations(FACTORS, size)
  }
  forms = {name: np.zeros((len(group),) * 2) for name in FACTORS}
  for order in itertools.permutations(FACTORS):
    for i, name in enumerate(order):
      after, before = (
        known[tuple(f for f in FACTORS if f in order[:end])]
        for end in (i + 1, i)
      )
      forms[name] += (after - before) / math.factorial(len(FACTORS))
  return forms | {"rest": np.eye(len(group)) - known[FACTORS]}


def _columns(group: pl.DataFrame) -> dict[str, Array]:
  """Design columns of each factor."""
  size = group["params"].log10().to_numpy()
  size = size - size.mean()
  distinct = len(np.unique(np.round(size, 1)))
  families = group["family"].to_numpy()
  family = (families[:, None] == np.unique(families)).astype(float)
  depth = np.log2(group["depth"].to_numpy())[:, None] * family
  powers = range(1, min(CURVE, distinct - 1) + 1)
  return {
    "parameters": np.stack([size**k for k in powers], 1)
    if powers
    else np.zeros((len(size), 0)),
    "family": family,
    "depth": depth,
  }


def _power(
  found_shares: Shares, limit: float, config: Config, more: float
) -> float:
  """Power for a share halfway between the limit and all."""
  one = found_shares.parts["parameters"]
  other = sum(v for k, v in found_shares.parts.items() if k != "parameters")
  confidence = config.confidence
  _, low, high, n = statistics.pair_interval(
    (1 - limit) * one - limit * other, confidence
  )
  quantile = statistics.t_quantile(n - 1.0, (1 + confidence) / 2)
  error = float((high - low) / 2 / quantile) / math.sqrt(more)
  distance = (1 - limit) / 2 * found_shares.total
  return blocks.power(max(distance, 0.0), error, float(n - 1), confidence)


def _equivalence(
  found: Evidence, labels: pl.DataFrame, accuracy: Array, config: Config
) -> str:
  """Tells which shapes of equal size, from P_min on, are equivalent."""
  least = found["minimal_parameters"].select(
    "dataset",
    "family",
    least=pl.when(status="below grid").then(0.0).otherwise("p_min"),
  )
  reaches = (
    labels.join(
      least, on=["dataset", "family"], how="left", maintain_order="left"
    )
    .select((pl.col("params") >= pl.col("least")).fill_null(False))
    .to_series()
  )
  contrasts = matching.contrasts(
    labels.filter(reaches),
    accuracy[reaches.to_numpy()],
    config.match_tolerance,
  )
  if not contrasts:
    return "no two shapes of at least P_min match in two sizes"
  margin = config.equivalence_margin
  strict = 1 - (1 - config.confidence) / len(contrasts)
  equal, beyond = 0, []
  for name, difference in contrasts:
    low, high = difference.interval(config.confidence)
    equal += -margin < low and high < margin
    low, high = difference.interval(strict)
    if low > margin or high < -margin:
      beyond.append(f"{name} {difference.value:+.1%}")
  text = f"from P_min on {equal} of {len(contrasts)} contrasts are equivalent"
  return text + (f", beyond the margin: {', '.join(beyond)}" if beyond else "")
