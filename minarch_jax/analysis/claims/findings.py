"""What a claim is judged from, and what a finding about it says."""

from typing import Any, NamedTuple, Protocol

import polars as pl

from minarch_jax.analysis import tables
from minarch_jax.analysis.claims import blocks
from minarch_jax.analysis.regimes import STABLE
from minarch_jax.config import Config
from minarch_jax.records import Records

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED)
ENOUGH = 0.8  # power that a design should have


class Evidence(Protocol):
  """Results by name, and those of the other arms: `analyses.Analyses`."""

  records: Records

  def __getitem__(self, name: str) -> Any: ...

  def arm(self, name: str) -> "Evidence": ...


class Question(NamedTuple):
  """What a claim asks of the records: unit, tables, and the design."""

  unit: str
  rests_on: str
  design: str


class Finding(NamedTuple):
  """One claim judged.

  `power` is the probability that this study decides where the effect is as
  large as matters; `note` says what limits the finding or would decide it.
  """

  effect: float | None
  low: float | None
  high: float | None
  n: int
  verdict: str
  unit: str
  rests_on: str
  design: str
  power: float | None = None
  note: str = ""


def decided(low: float, high: float, boundary: float) -> str:
  """Supported above the boundary, contradicted below, by the whole interval."""
  if low > boundary:
    return SUPPORTED
  return CONTRADICTED if high < boundary else UNDECIDED


def judged(
  question: Question,
  estimate: blocks.Estimate,
  n: int,
  matters: float,
  found: Evidence,
  config: Config,
  *,
  note: str = "",
  falls: bool = False,
) -> Finding:
  """Judges an effect against none.

  Args:
    question: what is asked.
    estimate: of the effect.
    n: architectures.
    matters: the effect that the study should be able to see.
    found: the evidence.
    config: thresholds.
    note: what to say beside.
    falls: the claim says that the effect is below zero.
  """
  low, high = estimate.interval(config.confidence)
  if not estimate.freedom or low != low:
    return nothing(question, f"{note}; two seeds are needed at least")
  verdict = decided(-high, -low, 0) if falls else decided(low, high, 0)
  chance = estimate.power(matters, config.confidence)
  if verdict == UNDECIDED:
    more = blocks.FULL_SEEDS / max(num_seeds(found), 1)
    full = estimate.power(matters, config.confidence, max(more, 1))
    most = estimate.power(matters, config.confidence, 1e9)
    note += "; " + remedy(chance, full, most, f"an effect of {matters:g}")
  return Finding(estimate.value, low, high, n, verdict, *question, chance, note)


def remedy(now: float, full: float, most: float, what: str) -> str:
  """Says what would decide.

  Args:
    now: power for the effect that matters.
    full: likewise, under --design=full.
    most: likewise, of any number of seeds.
    what: the effect that matters.
  """
  text = f"{what} is seen in {now:.0%} of such studies"
  if now >= ENOUGH:
    return f"{text}: if there is one it is smaller"
  if full > now:
    text += f", with --design=full in {full:.0%}"
  if full < ENOUGH:
    text += (
      "; more seeds would decide"
      if most >= ENOUGH
      else "; architectures scatter: more of them would decide, not more seeds"
    )
  return text


def num_seeds(found: Evidence) -> int:
  return int(found["regimes"]["n_seeds"].max() or 0)  # pyright: ignore


def stable(found: Evidence) -> pl.DataFrame:
  return found["regimes"].filter(STABLE)


def nothing(question: Question, note: str) -> Finding:
  note = note.removeprefix("; ")
  return Finding(None, None, None, 0, UNDECIDED, *question, note=note)


def primary(pruning: pl.DataFrame) -> pl.DataFrame:
  """Magnitude, one scope (global where there is one), element-wise."""
  rows = pruning.filter(pl.col("criterion") == tables.FIRST["criterion"][0])
  if not len(rows):
    rows = pruning.filter(tables.RANKED)
  return tables.primary(rows, ("scope", "granularity"))
