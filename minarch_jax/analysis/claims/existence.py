"""C2: are there sizes at which networks are unstable, learn, overfit?"""

from collections.abc import Iterator, Sequence
import itertools
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import special

from minarch_jax import records
from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import blocks, findings
from minarch_jax.analysis.claims.findings import Evidence, Finding
from minarch_jax.analysis.hits import Hits
from minarch_jax.analysis.regimes import LABELS
from minarch_jax.config import Config

CLEAR = 0.9  # share of the networks of a size that a study should recognise
QUESTION = findings.Question(
  "P(overfits) at the largest size",
  "networks, and those of the arm overfitting",
  "networks of one step of size, over families, depths and seeds: is the "
  "smallest unstable, do two that follow each other learn, does the largest "
  "overfit; exact binomial tests, chi-squared bounds of the spread",
)
Key = tuple[str, str]  # data set, family


class Size(NamedTuple):
  """Networks of about one size: how many, what they did, by data set."""

  params: float
  n: int
  failed: int
  overfitted: int
  networks: dict[str, blocks.Networks]

  @property
  def learned(self) -> int:
    return self.n - self.failed - self.overfitted


def three_regimes(found: Evidence, config: Config) -> Finding:
  """On average over families each regime holds some size.

  Unstable: the smallest size fails in more than `max_failed` of its networks or
  varies by more than `eps_sigma`. Learning: of two neighbouring sizes most
  networks neither fail nor overfit, and vary by at most `eps_sigma`.
  Overfitting: most networks of the largest size overfit, in the main arm or in
  that of overfitting. Contradicted where at no size most learn, or at the
  largest most are shown not to overfit and P(overfits) does not grow along P.
  (A grid without an unstable size does not reach down, no more.)
  """
  main = _families(found["outcomes"], config)
  if not main or findings.num_seeds(found) < 2:
    return findings.nothing(QUESTION, "one seed cannot show instability")
  sizes = _steps(main)
  if len(sizes) < 3:
    return findings.nothing(QUESTION, "three regimes ask for three sizes")
  other = found.arm(records.OVERFITTING)
  arm = _families(other["outcomes"], config)
  level = (1 - config.confidence) / 2
  hits = Hits.of(found.records.hits)
  unstable, learns, never = _below(sizes, hits, level, config)
  # Where overfitting is looked for it is looked for there, else in the main.
  steps = _steps(arm) if arm else sizes
  last = steps[-1]
  low, high = _exact(last.overfitted, last.n, level)
  grows = _trend(steps)[1] > special.ndtri(1 - level)
  verdict = findings.UNDECIDED
  if unstable and learns and low > 0.5:
    verdict = findings.SUPPORTED
  elif never or (high < 0.5 and not grows):
    verdict = findings.CONTRADICTED
  shown = {LABELS[0]: unstable, LABELS[1]: learns, LABELS[2]: low > 0.5}
  note = ", ".join(
    f"{name} {'shown' if there else 'not shown'}"
    for name, there in shown.items()
  )
  note += f"; overfitting: {_told(arm or main)}; {_slope(steps, level)}"
  now, then = _power(last.n, level), _power(last.n * 4 // 3, level)
  if verdict == findings.UNDECIDED:
    note += "; " + _open(shown, bool(arm), now, then)
  return Finding(
    last.overfitted / last.n,
    low,
    high,
    sum(size.n for size in sizes) + sum(s.n for s in steps if arm),
    verdict,
    *QUESTION,
    now,
    note,
  )


def _below(
  steps: list[Size], hits: Hits, level: float, config: Config
) -> tuple[bool, bool, bool]:
  """Is instability shown, learning shown, learning shown to be nowhere?"""

  def spread(size: Size, level: float) -> tuple[bool, bool]:
    networks = list(size.networks.values())
    return blocks.spread_shown(networks, hits, config.eps_sigma, level)

  first = steps[0]
  unstable = (
    _more(first.failed, first.n, config.max_failed) < level / 2
    or spread(first, level / 2)[1]
  )
  pairs = [_together(pair) for pair in itertools.pairwise(steps)] or steps
  among = level / len(pairs)
  learns = any(
    _more(s.learned, s.n, 0.5) < among and spread(s, among)[0] for s in pairs
  )
  never = all(
    _exact(s.learned, s.n, level / 2)[1] < 0.5 or spread(s, level / 2)[1]
    for s in steps
  )
  return unstable, learns, never


def _families(outcomes: pl.DataFrame, config: Config) -> dict[Key, list[Size]]:
  """The sizes of every (data set, family), increasing."""
  return {
    key: list(_sizes(key[0], rows, config))  # pyright: ignore
    for key, rows in outcomes.sort("dataset", "family", "params").group_by(
      "dataset", "family", maintain_order=True
    )
  }  # pyright: ignore


def _sizes(dataset: str, rows: pl.DataFrame, config: Config) -> Iterator[Size]:
  by = ("params", "architecture")
  known = rows.with_columns(
    living=pl.when("failed").then(np.nan).otherwise("val_accuracy"),
    place=pl.when("failed").then(-1).otherwise("row"),
    over=pl.col("overfits").fill_null(False) & ~pl.col("failed"),
  )
  pivot = tables.Pivot(known, by)
  names, values, places = (
    *(pivot.groups, pivot.means("living")),
    pivot.numbers("place"),
  )
  numbers = tables.size_classes(
    names["params"].to_numpy(), config.match_tolerance
  )
  for number in np.unique(numbers):
    here = numbers == number
    own = known.filter(
      pl.col("architecture").is_in(names.filter(here)["architecture"].implode())
    )
    images = float(own["num_validation"].max())  # pyright: ignore
    yield Size(
      float(own["params"].mean()),  # pyright: ignore
      len(own),
      int(own["failed"].sum()),
      int(own["over"].sum()),
      {dataset: blocks.Networks(values[here], places[here], images)},
    )


def _together(sizes: Sequence[Size]) -> Size:
  parts: dict[str, list[blocks.Networks]] = {}
  for size in sizes:
    for dataset, networks in size.networks.items():
      parts.setdefault(dataset, []).append(networks)
  return Size(
    float(np.mean([s.params for s in sizes])),
    sum(s.n for s in sizes),
    sum(s.failed for s in sizes),
    sum(s.overfitted for s in sizes),
    {name: _stacked(own) for name, own in parts.items()},
  )


def _stacked(parts: list[blocks.Networks]) -> blocks.Networks:
  """Architectures one below the other; families have the same seeds, or the
  last ones are missing."""
  width = max(part.accuracy.shape[1] for part in parts)

  def padded(values: np.ndarray, missing: float) -> np.ndarray:
    room = ((0, 0), (0, width - values.shape[1]))
    return np.pad(values, room, constant_values=missing)

  return blocks.Networks(
    np.concatenate([padded(p.accuracy, np.nan) for p in parts]),
    np.concatenate([padded(p.rows, -1) for p in parts]),
    min(p.images for p in parts),
  )


def _steps(families: dict[Key, list[Size]]) -> list[Size]:
  """The steps of size over all families, as many as the shortest has: its
  places from the smallest to the largest of each."""
  count = min(len(sizes) for sizes in families.values())
  places = [
    np.round(np.linspace(0, len(sizes) - 1, count)).astype(int)
    for sizes in families.values()
  ]
  return [
    _together(
      tuple(
        sizes[own[i]]
        for sizes, own in zip(families.values(), places, strict=True)
      )
    )
    for i in range(count)
  ]


def _more(k: int, n: int, share: float) -> float:
  """p-value of k of n against a probability of at most `share`."""
  return float(special.bdtrc(k - 1, n, share)) if k else 1.0


def _exact(k: int, n: int, level: float) -> tuple[float, float]:
  """Clopper and Pearson's bounds of a probability, one-sided level each."""
  low = float(special.betaincinv(k, n - k + 1, level)) if k else 0.0
  high = float(special.betaincinv(k + 1, n - k, 1 - level)) if k < n else 1.0
  return low, high


def _power(n: int, level: float) -> float:
  """Power to show a regime of `CLEAR` of n networks."""
  needed = (k for k in range(n + 1) if _exact(k, n, level)[0] > 0.5)
  return _more(next(needed, n + 1), n, CLEAR)


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


def _slope(sizes: list[Size], level: float) -> str:
  slope, z = _trend(sizes)
  half = abs(slope / z) * special.ndtri(1 - level) if z else 0.0
  return f"{slope:+.2f} +- {half:.2f} per decade of P"


def _told(families: dict[Key, list[Size]]) -> str:
  """Per family: how many of the largest overfit."""
  return ", ".join(
    f"{dataset} {family} {sizes[-1].overfitted}/{sizes[-1].n} at "
    f"{sizes[-1].params:,.0f}"
    for (dataset, family), sizes in families.items()
  )


def _open(
  shown: dict[str, bool], has_arm: bool, now: float, then: float
) -> str:
  advice = {
    LABELS[0]: "smaller architectures",
    LABELS[1]: "more seeds (--num_seeds)",
    LABELS[2]: f"larger architectures, longer training or --design=full: "
    f"{CLEAR:.0%} of a size would be seen in {now:.0%} of such studies, with "
    f"--design=full in {then:.0%}"
    if has_arm
    else "the arm overfitting",
  }
  missing = [advice[name] for name, there in shown.items() if not there]
  return "what would decide: " + "; ".join(missing)
