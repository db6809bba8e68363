"""Scores the trained networks of a pack in every cell of a grid."""

from collections.abc import Sequence

import jax
import numpy as np

from minarch_jax.compression import networks as hosts
from minarch_jax.compression import programs, scoring
from minarch_jax.compression.grid import Cell, Rule
from minarch_jax.compression.networks import Networks
from minarch_jax.compression.programs import Outcome
from minarch_jax.compression.scoring import Ranked
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.quantization.rounding import NEAREST


def score_cells(ranked: Ranked, pack: Pack, cells: Sequence[Cell]) -> Outcome:
  """Scores every network of a pack in every cell of a grid.

  Returns:
    Outcome arrays [S, A, cells].
  """
  placed = ranked.placed
  scorer = scoring.scorer_of(ranked)
  whole = _rounded_whole(ranked, cells)
  outcomes, last = [], None
  cut: Networks = []
  for cell in cells:
    precision = cell.precision
    rounded = whole.get(cell)
    if rounded is None:
      if (cell.rule, cell.sparsity) != last:
        last = cell.rule, cell.sparsity
        cut = _cut(ranked, *last)
      rounded = hosts.rounded(placed, cut, precision)
    outcomes.append(scorer.score(rounded, precision.activation_bits))
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Outcome(*(part[keep] for part in scoring.stack(outcomes, 2)))


def _cut(ranked: Ranked, rule: Rule, sparsity: float) -> list[np.ndarray]:
  networks = ranked.networks
  masks = scoring.masks_of(
    ranked.placed, rule, ranked.places[rule], [sparsity] * len(networks)
  )
  return scoring.pruned(networks, masks)


def _rounded_whole(
  ranked: Ranked, cells: Sequence[Cell]
) -> dict[Cell, list[np.ndarray]]:
  """Rounds dense networks by the methods that look at a whole network.

  Each at its true shapes, so that a result does not depend on the parent; that
  is a program for every architecture.

  Returns:
    The networks of every cell that asks for it.
  """
  cells = [c for c in cells if c.precision.rounding.method != NEAREST]
  if not cells:
    return {}
  placed, session = ranked.placed, ranked.placed.session
  settings = tuple((c.precision.bits, c.precision.rounding) for c in cells)
  found: dict[Cell, list[np.ndarray]] = {cell: [] for cell in cells}
  for architecture, network in zip(
    placed.pack.architectures, ranked.networks, strict=True
  ):
    seeds = placed.pack.seeds[: len(network)]
    alone = sessions.place(
      session, Pack((architecture,), seeds, architecture, 1)
    )
    trees = alone.run(
      programs.WHOLE,
      static={"network": alone.network, "settings": settings},
      params=hosts.tree_of(alone, hosts.stacked(alone, [network])),
      view=alone.view,
      data=session.data,
    )
    for cell, tree in zip(cells, jax.device_get(trees), strict=True):
      found[cell] += hosts.unstacked(alone, tree, len(network))
    placed.compile_seconds += alone.compile_seconds
  return found
