"""Trains what a search for the minimal parameters asks for, round by round."""

from collections.abc import Callable, Mapping
import dataclasses
import time
from typing import Any

import polars as pl

from minarch_jax import records
from minarch_jax.analysis import search
from minarch_jax.architectures import Problem
from minarch_jax.config import Config
from minarch_jax.engine.session import Session
from minarch_jax.stages import setup, train

Families = Mapping[str, Mapping[str, int]]


def candidates_of(config: Config) -> Families:
  """Lists the architectures of a configuration with their sizes, by family.

  Raises:
    ConfigError: as `setup.check`.
  """
  problem = Problem.of(setup.check(config))
  families: dict[str, dict[str, int]] = {}
  for member in setup.select(config, problem):
    sizes = families.setdefault(member.family, {})
    sizes[str(member)] = member.spec(problem).num_params
  return families


def run(
  session: Session,
  out: str,
  candidates: Mapping[str, int],
  *,
  relative_width: float,
  max_share: float,
  show: Callable[[str], Any] = print,
) -> tuple[search.Step, list[dict[str, Any]]]:
  """Searches one family until its interval is narrow enough.

  What `out` holds of the same training recipe counts as trained, so a search
  that was interrupted goes on where it stopped.

  Args:
    session: the data and programs; its configuration sets the thresholds.
    out: the results directory.
    candidates: parameter count of every architecture that may be trained.
    relative_width: as `search.next_trainings`.
    max_share: most trainings, as a share of the full grid's.
    show: takes a line per round.

  Returns:
    The last step, and a line of engine statistics per pack.
  """
  config, statistics = session.config, []
  start, before = time.monotonic(), None
  while True:
    networks = records.read_table(out, "networks").filter(
      pl.col("run_id") == setup.recipe_id(session),
      pl.col("architecture").is_in(list(candidates)),
    )
    step = search.next_trainings(
      networks,
      candidates,
      config,
      relative_width=relative_width,
      max_trainings=int(max_share * len(candidates) * config.num_seeds),
    )
    before = step.trained if before is None else before
    new = step.trained - before
    show(search.progress(step, (time.monotonic() - start) / max(new, 1)))
    if step.done:
      return step, statistics
    for part in search.sweeps(step, config):
      own = dataclasses.replace(session, config=part)
      statistics += train.sweep(own, out)
