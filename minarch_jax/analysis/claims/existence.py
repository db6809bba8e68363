"""C2: does each of the three regimes exist in each family?"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special

from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import arms, blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.analysis.regimes import LABELS
from minarch_jax.config import Config

CLEAR = 0.9  # share of the networks of a size that a study should recognise
QUESTION = findings.Question(
  "share of (family, regime)",
  "networks, and those of the arm overfitting",
  "per family: a size most of whose networks are in the regime; exact binomial "
  "tests over its architectures and seeds, corrected for the sizes",
)


class Size(NamedTuple):
  """The networks of one size of a family: how many, and what they did."""

  params: int
  n: int
  failed: int
  overfitted: int
  accuracy: np.ndarray  # [G, S], nan = failed
  images: float

  @property
  def learned(self) -> int:
    return self.n - self.failed - self.overfitted


class Judged(NamedTuple):
  """A regime of a family: shown to exist, shown not to, seen."""

  shown: bool
  absent: bool
  seen: bool
  power: float


def three_regimes(found: Evidence, config: Config) -> Finding:
  """Every regime is shown to exist in every (data set, family).

  Contradicted where learning or overfitting is shown to hold less than half of
  the networks at all sizes of some family, and overfitting does not grow along
  P. (A grid without an unstable size does not reach down, no more.) The effect
  is the share of (family, regime) that exist, its bounds those that are shown
  and those that are not shown to be absent.
  """
  main = dict(_families(found["outcomes"], config))
  if not main or findings.num_seeds(found) < 2:
    return findings.nothing(QUESTION, "one seed cannot show instability")
  arm = dict(_families(found.arm(arms.OVERFITTING)["outcomes"], config))
  level = (1 - config.confidence) / 2
  judged = {
    (*key, regime): result
    for key, sizes in main.items()
    for regime, result in _regimes(
      sizes, _of(arm, key), level, len(main), config
    ).items()
  }
  total = len(judged)
  shown, absent, seen = (
    sum(getattr(j, name) for j in judged.values())
    for name in ("shown", "absent", "seen")
  )
  verdict = (
    findings.CONTRADICTED
    if absent
    else findings.SUPPORTED
    if shown == total
    else findings.UNDECIDED
  )
  note = f"{shown} of {total} shown; " + _overfitting(main, arm, config)
  power = min(j.power for j in judged.values())
  if verdict == findings.UNDECIDED:
    note += "; " + _open(judged, arm, power)
  low, high = shown / total, (total - absent) / total
  effect = float(np.clip(seen / total, low, high))
  n = sum(size.n for sizes in main.values() for size in sizes)
  return Finding(effect, low, high, n, verdict, *QUESTION, power, note)


def _families(
  outcomes: pl.DataFrame, config: Config
) -> Iterator[tuple[tuple[str, str], list[Size]]]:
  """The sizes of every (data set, family), increasing."""
  for key, rows in outcomes.sort("dataset", "family", "params").group_by(
    "dataset", "family", maintain_order=True
  ):
    numbers = tables.size_classes(
      rows["params"].to_numpy(), config.match_tolerance
    )
    sizes = []
    for _, own in rows.with_columns(_size=numbers).group_by(
      "_size", maintain_order=True
    ):
      over = own["overfits"].fill_null(False) & ~own["failed"]
      living = own.with_columns(
        accuracy=pl.when(~pl.col("failed")).then("val_accuracy")
      )
      _, _, accuracy = tables.seed_matrix(
        living.with_columns(pl.col("accuracy").fill_null(np.nan)),
        ("architecture",),
        "accuracy",
      )
      failed = int(own["failed"].sum())
      images = float(own["num_validation"].max())  # pyright: ignore
      params = int(own["params"].median())  # pyright: ignore
      sizes.append(
        Size(params, len(own), failed, int(over.sum()), accuracy, images)
      )
    yield key, sizes  # pyright: ignore


def _of(
  arm: dict[tuple[str, str], list[Size]], key: tuple[str, str]
) -> list[Size]:
  """The sizes of the arm that belong to a (data set, family) of the main."""
  return [
    size
    for (dataset, family), sizes in arm.items()
    if family == key[1] and dataset.split(":")[0] == key[0].split(":")[0]
    for size in sizes
  ]


def _more(k: int, n: int, share: float) -> float:
  """p-value of k of n against a probability of at most `share`."""
  return float(special.bdtrc(k - 1, n, share)) if k else 1.0


def _fewer(k: int, n: int, share: float) -> float:
  """p-value of k of n against a probability of at least `share`."""
  return float(special.bdtr(k, n, share))


def _regimes(
  sizes: list[Size],
  arm: list[Size],
  level: float,
  families: int,
  config: Config,
) -> dict[str, Judged]:
  """Judges the three regimes of a family; level: one-sided, per claim."""
  own, strict = level / len(sizes), level / families
  unstable = any(
    _more(s.failed, s.n, config.max_failed) < own / 2
    or blocks.spread_shown(s.accuracy, s.images, config.eps_sigma, own / 2)[1]
    for s in sizes
  )
  stable = [
    blocks.spread_shown(s.accuracy, s.images, config.eps_sigma, own)[0]
    for s in sizes
  ]
  learns = any(
    ok and _more(s.learned, s.n, 0.5) < own
    for s, ok in zip(sizes, stable, strict=True)
  )
  never = all(
    _fewer(s.learned, s.n, 0.5) < strict
    or blocks.spread_shown(s.accuracy, s.images, config.eps_sigma, strict)[1]
    for s in sizes
  )
  # The largest size of either arm, chosen before looking.
  ends = [group[-1] for group in (sizes, arm) if group]
  each = level / len(ends)
  over = any(_more(s.overfitted, s.n, 0.5) < each for s in ends)
  none = (
    all(_fewer(s.overfitted, s.n, 0.5) < strict for s in ends)
    and not any(2 * s.overfitted > s.n for s in (*sizes, *arm))
    and not _grows(arm or sizes, level)
  )
  most = max(sizes, key=lambda s: s.learned / s.n)
  return {
    LABELS[0]: Judged(unstable, False, unstable or sizes[0].failed > 0, 1.0),
    LABELS[1]: Judged(
      learns, never, 2 * most.learned > most.n, _power(most.n, own)
    ),
    LABELS[2]: Judged(
      over,
      none,
      any(2 * s.overfitted > s.n for s in ends),
      max(_power(s.n, each) for s in ends),
    ),
  }


def _power(n: int, level: float) -> float:
  """Power to show a regime of `CLEAR` of n networks."""
  needed = next((k for k in range(n + 1) if _more(k, n, 0.5) < level), None)
  return 0.0 if needed is None else _more(needed, n, CLEAR)


def _trend(sizes: list[Size]) -> tuple[float, float]:
  """Slope of P(overfits) per decade of P, and its z (Cochran, Armitage)."""
  x = np.log10([s.params for s in sizes])
  n = np.array([s.n for s in sizes], float)
  k = np.array([s.overfitted for s in sizes], float)
  share = k.sum() / n.sum()
  x = x - (n * x).sum() / n.sum()
  squares = (n * x**2).sum()
  if squares <= 0:
    return 0.0, 0.0
  slope = float((x * k).sum() / squares)
  error = np.sqrt(share * (1 - share) / squares)
  return slope, float(slope / error) if error > 0 else 0.0


def _grows(sizes: list[Size], level: float) -> bool:
  return _trend(sizes)[1] > special.ndtri(1 - level)


def _overfitting(
  main: dict[tuple[str, str], list[Size]],
  arm: dict[tuple[str, str], list[Size]],
  config: Config,
) -> str:
  """Tells how P(overfits) changes along P, where it was looked for."""
  told = []
  for (dataset, family), sizes in (arm or main).items():
    last, (slope, z) = sizes[-1], _trend(sizes)
    half = slope / z * special.ndtri((1 + config.confidence) / 2) if z else 0
    told.append(
      f"{dataset} {family} {last.overfitted}/{last.n} at {last.params:,}, "
      f"{slope:+.2f} +- {half:.2f} per decade"
    )
  return "overfitting: " + "; ".join(told)


def _open(
  judged: dict[tuple[str, str, str], Judged],
  arm: dict[tuple[str, str], list[Size]],
  power: float,
) -> str:
  missing = sorted({key[2] for key, j in judged.items() if not j.shown})
  advice = {
    LABELS[0]: "smaller architectures",
    LABELS[1]: "more seeds (--design=full)",
    LABELS[2]: "the arm overfitting"
    if not arm
    else "larger architectures, longer training or more seeds (--design=full)",
  }
  return (
    "not shown everywhere: "
    + ", ".join(f"{name} ({advice[name]} would decide)" for name in missing)
    + f"; {CLEAR:.0%} of a size are seen in {power:.0%} of such studies"
  )
