"""What a claim is judged from, and what a finding about it says."""

import math
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


class Cure(NamedTuple):
  """A larger study: how it is asked for, and how many times the seeds and the
  architectures it has."""

  what: str
  seeds: float = 1.0
  cells: float = 1.0


TWICE = Cure("twice the seeds (--num_seeds)", seeds=2.0)


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
  config: Config,
  *,
  note: str = "",
  falls: bool = False,
  cure: Cure = TWICE,
) -> Finding:
  """Judges an effect against none.

  Args:
    question: what is asked.
    estimate: of the effect.
    n: architectures.
    matters: the effect that the study should be able to see.
    config: thresholds.
    note: what to say beside.
    falls: the claim says that the effect is below zero.
    cure: what is asked for where the study cannot decide.
  """
  low, high = estimate.interval(config.confidence)
  if not estimate.freedom or math.isnan(low):
    return nothing(question, f"{note}; two seeds are needed at least")
  verdict = decided(-high, -low, 0) if falls else decided(low, high, 0)
  now, then = (
    estimate.power(matters, config.confidence, *times)
    for times in ((1.0, 1.0), (cure.seeds, cure.cells))
  )
  if verdict == UNDECIDED:
    note += "; " + remedy(now, then, f"an effect of {matters:g}", cure.what)
  return Finding(estimate.value, low, high, n, verdict, *question, now, note)


def remedy(now: float, then: float, what: str, cure: str) -> str:
  """Says what would decide.

  Args:
    now: power for the effect that matters.
    then: likewise, of the larger study.
    what: the effect that matters.
    cure: the larger study.
  """
  text = f"{what} would be seen in {now:.0%} of such studies"
  if now >= ENOUGH:
    return f"{text}: if there is one it is smaller"
  text += f", with {cure} in {then:.0%}"
  return text + ("" if then >= ENOUGH else "; more architectures would help")


def beside(name: str, estimate: blocks.Estimate, config: Config) -> str:
  """Tells an effect that does not decide."""
  low, high = estimate.interval(config.confidence)
  return f"{name} {estimate.value:+.3f} [{low:+.3f}, {high:+.3f}]"


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
