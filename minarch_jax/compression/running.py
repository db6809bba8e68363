"""Compresses a pack: ranks its networks, scores the grid, retrains.

A pack's weights are ranked once by every rule, on the host. A cell of the grid
is a cut of a ranking, rounded (`networks`), and one call of the program that
trained the pack, which scores it (`scoring.Scorer`). Retraining puts the pruned
networks into the slots of the same pack, trains them by the same program, and
scores them likewise. So no cell and no retraining costs a compilation, except
where a whole network is rounded at once (`oneshot`).
"""

from collections.abc import Sequence
import time
from typing import NamedTuple

from minarch_jax.compression import oneshot, retraining, scoring
from minarch_jax.compression.grid import Cell, Precision, Retraining
from minarch_jax.compression.programs import Outcome
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.types import Params


class Compressed(NamedTuple):
  """What compressing a pack gave.

  Attributes:
    oneshot: Outcome arrays [S, A, cells].
    retrained: Outcome arrays [S, retrainings, precisions]; None without any.
    compile_seconds, run_seconds: wall time.
  """

  oneshot: Outcome
  retrained: Outcome | None
  compile_seconds: float
  run_seconds: float


def compress(
  session: Session,
  pack: Pack,
  params: Sequence[Params],
  cells: Sequence[Cell],
  retrainings: Sequence[Retraining],
  precisions: Sequence[Precision],
) -> Compressed:
  """Scores a pack's networks one-shot in every cell, and retrained.

  Args:
    session: the data and programs.
    params: for each architecture a host tree of its true shapes, leading S.
    cells: the one-shot grid.
    retrainings: of the pack's architectures; none, no retraining.
    precisions: what is scored after each retraining.
  """
  start = time.perf_counter()
  rules = [each.rule for each in (*cells, *retrainings)]
  ranked = scoring.rank(session, pack, params, rules)
  scored, retrained = oneshot.score_cells(ranked, pack, cells), None
  if retrainings:
    retrained = retraining.retrain(ranked, pack, retrainings, precisions)
  seconds = time.perf_counter() - start
  compiling = ranked.placed.compile_seconds
  return Compressed(scored, retrained, compiling, seconds - compiling)
