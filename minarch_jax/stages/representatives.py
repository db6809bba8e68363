"""Chooses the architectures of a sweep that are looked at more closely."""

from collections.abc import Sequence

import numpy as np

from minarch_jax import records
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.engine.session import Session
from minarch_jax.stages import setup


def representatives(
  session: Session, out: str, members: Sequence[Architecture]
) -> list[Architecture]:
  """Chooses the architectures that are retrained, on validation alone.

  Per family, along the parameter axis: of every depth the smallest at or above
  the minimal parameter count, and the one nearest to five times as large.
  """
  if session.config.finetune == "all":
    return list(members)
  from minarch_jax import analysis  # brings scipy

  # Other data sets and recipes in the directory have minimal sizes of their
  # own.
  own = records.of_run(records.read(out), setup.recipe_id(session))
  found = analysis.minimal_parameters(own, session.config)
  smallest = dict(found.select("family", "p_min").iter_rows())
  chosen = []
  for family in dict.fromkeys(a.family for a in members):
    group = [a for a in members if a.family == family]
    chosen += around(session.problem, group, smallest.get(family))
  return list(dict.fromkeys(chosen))


def around(
  problem: Problem, group: Sequence[Architecture], minimum: int | None = None
) -> list[Architecture]:
  """Chooses of one family; without a minimal size, from the middle on."""

  def params(architecture: Architecture) -> int:
    return architecture.spec(problem).num_params

  group = sorted(group, key=params)
  limit = minimum or params(group[len(group) // 2])
  above = [a for a in group if params(a) >= limit]
  chosen = []
  for depth in sorted({a.depth for a in above}):
    chosen += [a for a in above if a.depth == depth][:1]
  distance = [abs(np.log(params(a) / limit / 5)) for a in above]
  return chosen + ([above[int(np.argmin(distance))]] if above else [])
