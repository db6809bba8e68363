"""The networks of a pack on the host, as vectors: stacked, scored, rounded.

A network of S seeds is float32 [S, N] at its true shapes (`vectors`). A pack's
programs see trees [S, A, ...] in its parent's shapes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from minarch_jax import random
from minarch_jax.architectures import Architecture, vectors
from minarch_jax.architectures.vectors import Vector
from minarch_jax.compression import programs
from minarch_jax.compression.grid import Precision
from minarch_jax.engine import packs, population
from minarch_jax.engine.session import Placed
from minarch_jax.pruning import criteria as criteria_lib
from minarch_jax.quantization import rows

Networks = Sequence[np.ndarray]  # [S, N] of each slot of a pack


def vector_of(placed: Placed, architecture: Architecture) -> Vector:
  return vectors.vector_of(architecture, placed.session.problem)


def _slots(placed: Placed) -> Iterator[tuple[int, np.ndarray]]:
  """Numbers the slots, with the places of their entries in the parent's."""
  for slot, architecture in enumerate(placed.pack.architectures):
    yield (
      slot,
      vectors.inside(architecture, placed.pack.parent, placed.session.problem),
    )


def stacked(placed: Placed, networks: Networks) -> np.ndarray:
  """Stacks the networks of a pack: [S, A, N of the parent], padding 0.

  The last seed and slot are repeated where the placement has more.
  """
  pack, wide = placed.pack, vector_of(placed, placed.pack.parent)
  shape = len(pack.seeds), pack.slots, wide.size
  found = np.zeros(shape, networks[0].dtype)
  seeds, slots = len(networks[0]), len(networks)
  for slot, entries in _slots(placed):
    found[:seeds, slot, entries] = networks[slot]
  found[:, slots:] = found[:, slots - 1 : slots]
  found[seeds:] = found[seeds - 1 : seeds]
  return found


def tree_of(placed: Placed, stack: np.ndarray) -> Any:
  """Cuts what `stacked` gave into a tree [S, A, ...], on the host."""
  return vector_of(placed, placed.pack.parent).tree(stack)


def unstacked(placed: Placed, tree: Any, num_seeds: int) -> list[np.ndarray]:
  """Undoes `stacked` and `tree_of`; the tree may be on the devices."""
  stack = vector_of(placed, placed.pack.parent).of(jax.device_get(tree))
  return [stack[:num_seeds, slot, entries] for slot, entries in _slots(placed)]


def drawn(
  placed: Placed, purpose: random.Purpose, num_seeds: int
) -> list[np.ndarray]:
  """Draws a uniform number for every entry of every network."""
  found: dict[Architecture, np.ndarray] = {}
  for architecture in placed.pack.architectures:
    if architecture not in found:
      vector = vector_of(placed, architecture)
      columns = random.coordinates(
        [(path, vector.shapes[path]) for path in vector.paths]
      )
      draws = packs.draw(placed, purpose, "uniform", columns)
      found[architecture] = draws[:num_seeds]
  return [found[a] for a in placed.pack.architectures]


def scores(
  placed: Placed, networks: Networks, criteria: Sequence[str]
) -> dict[str, list[np.ndarray]]:
  """Scores the entries of every network: for each criterion as `networks`.

  Those that read data see the leading training images of each seed.
  """
  num_seeds, found = len(networks[0]), {}
  for name in criteria:
    chosen = criteria_lib.find(name)
    if chosen.entry is not None:
      draws: Sequence[Any] = networks  # not read
      if "key" in chosen.needs:
        draws = drawn(placed, random.Purpose.PRUNE, num_seeds)
      found[name] = list(map(chosen.entry, networks, draws))
      continue
    tree = placed.run(
      programs.SCORES,
      static={"network": placed.network, "criterion": name},
      params=tree_of(placed, stacked(placed, networks)),
      seed=placed.seeds,
      sizes=placed.sizes,
      view=placed.view,
      data=placed.session.data,
    )
    found[name] = unstacked(placed, tree, num_seeds)
  return found


# --- rounding ----------------------------------------------------------------

SHORTEST = 16  # entries of the rows of the narrowest table; others, by fours
# A call rounds as many rows for each device as the least of these that is
# enough, or as many as make so many entries: few programs, little waste.
ROWS = (32, 256)
TABLE = 65_536


def rounded(
  placed: Placed,
  networks: Networks,
  precision: Precision,
) -> list[np.ndarray]:
  """Rounds networks: to what `fake_quantize` gives of each."""
  if precision.bits == 32:
    return list(networks)
  # One entry more, which fills rows up.
  found = [np.pad(network, [(0, 0), (0, 1)]) for network in networks]
  tables: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
  for network, architecture in zip(
    found, placed.pack.architectures, strict=True
  ):
    problem, granularity = (
      placed.session.problem,
      precision.rounding.granularity,
    )
    for own in rows.rows_of(architecture, problem, granularity):
      length = SHORTEST
      while length < own.shape[1]:
        length *= 4
      edge, nothing = length - own.shape[1], network.shape[1] - 1
      own = np.pad(own, [(0, 0), (0, edge)], constant_values=nothing)
      tables.setdefault(length, []).append((network, own))
  for parts in tables.values():
    table = _joined([network[:, own] for network, own in parts])
    real = [own < network.shape[1] - 1 for network, own in parts]
    counts = [
      np.tile(each.sum(-1, dtype=np.int32), (len(network), 1))
      for each, (network, _) in zip(real, parts, strict=True)
    ]
    counts = np.concatenate([each.reshape(-1) for each in counts])
    table, end = _round(placed, table, counts, precision), 0
    for (network, own), each in zip(parts, real, strict=True):
      shape = len(network), *own.shape
      mine = table[end : (end := end + shape[0] * shape[1])].reshape(shape)
      network[:, own[each]] = mine[:, each]
  return [network[:, :-1] for network in found]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Joins rows of several networks [S, rows, length] to [rows, length]."""
  return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def _round(
  placed: Placed,
  table: np.ndarray,
  counts: np.ndarray,
  precision: Precision,
) -> np.ndarray:
  """Rounds rows [rows, length], of so many entries each."""
  layout, length = placed.layout, table.shape[1]
  devices, total = len(layout.devices), len(table)
  enough = [rows for rows in ROWS if rows * devices >= total]
  share = min([*enough[:1], max(1, TABLE // length)])
  call = devices * share
  table = np.pad(table, [(0, -total % call), (0, 0)])
  counts = np.pad(counts, (0, -total % call))
  done = [
    placed.run(
      programs.ROUND,
      static={"rounding": precision.rounding._replace(granularity="channel")},
      layout=population.Mapping(layout.devices, layout.device_map),
      table=table[first : first + call].reshape(devices, share, length),
      lengths=counts[first : first + call].reshape(devices, share),
      bits=np.int32(precision.bits),
    )
    for first in range(0, total, call)
  ]
  return np.concatenate(jax.device_get(done)).reshape(-1, length)[:total]
