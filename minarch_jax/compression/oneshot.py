"""Scores the trained networks of a pack in every cell of a grid."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from minarch_jax import models
from minarch_jax.compression import programs, scoring
from minarch_jax.compression.grid import Cell
from minarch_jax.compression.programs import Outcome
from minarch_jax.compression.scoring import Ranked, Scorer
from minarch_jax.engine import packs
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.quantization.rounding import NEAREST


def score_cells(ranked: Ranked, pack: Pack, cells: Sequence[Cell]) -> Outcome:
  """Scores every network of a pack in every cell of a grid.

  Returns:
    Outcome arrays [S, A, cells].
  """
  placed = ranked.placed
  params = placed.put(ranked.params, "network")
  opt_state = packs.start_state(placed, params).opt_state
  scorer = Scorer(placed, ranked.masks, opt_state)
  whole = _rounded_whole(ranked, pack, cells)
  outcomes = []
  for cell in cells:
    precision = cell.precision
    if cell in whole:
      rounded, nonzeros = whole[cell]
    else:
      level = np.full(placed.pack.slots, ranked.level(cell.sparsity))
      cut = ranked.cuts[cell.rule]
      rounded, _, nonzeros = scoring.transform(
        ranked, placed, params, cut, level, precision
      )
    outcomes.append(scorer.score(rounded, nonzeros, precision.activation_bits))
  keep = (slice(len(pack.seeds)), slice(len(pack.architectures)))
  return Outcome(*(part[keep] for part in scoring.stack(outcomes, 2)))


def _rounded_whole(
  ranked: Ranked, pack: Pack, cells: Sequence[Cell]
) -> dict[Cell, tuple[Any, np.ndarray]]:
  """Rounds dense networks by the methods that look at a whole network.

  Each at its true shapes, so that a result does not depend on the parent; that
  is a program for every architecture.

  Returns:
    For each cell that asks for it, parameters [S, A, ...] in the parent's
    shapes, placed, and int [S, A, leaves] entries that are not zero.
  """
  cells = [c for c in cells if c.precision.rounding.method != NEAREST]
  if not cells:
    return {}
  session, placed = ranked.placed.session, ranked.placed
  members = packs.split_members(ranked.params, pack, session)
  settings = tuple((c.precision.bits, c.precision.rounding) for c in cells)
  rounded = []
  for architecture, params in zip(pack.architectures, members, strict=True):
    alone = sessions.place(
      session, Pack((architecture,), pack.seeds, architecture, 1)
    )
    found = alone.run(
      programs.WHOLE,
      static={"network": alone.network, "settings": settings},
      params=scoring.repeated(
        jax.tree.map(lambda p: p[:, None], params), alone
      ),
      view=alone.view,
      data=session.data,
    )
    count = len(pack.seeds)
    rounded.append(
      jax.tree.map(lambda p, n=count: p[:n, 0], jax.device_get(found))
    )
    placed.compile_seconds += alone.compile_seconds
  stacks = [
    packs.stack_members(trees, scoring.full_slots(pack, placed), session)
    for trees in zip(*rounded, strict=True)
  ]
  leaves = placed.network.spec.leaves
  found = {}
  for cell, stack in zip(cells, stacks, strict=True):
    stack = scoring.repeated(stack, placed)
    flat = models.flatten(stack)
    nonzeros = [
      np.count_nonzero(
        flat[leaf.path].reshape(*flat[leaf.path].shape[:2], -1), axis=-1
      )
      for leaf in leaves
    ]
    found[cell] = (placed.put(stack, "network"), np.stack(nonzeros, -1))
  return found
