"""Ranks and cuts networks on the host, as vectors.

A vector holds a network's leaves one after the other, in the order of
`jax.tree.leaves`. How a granularity groups the entries is then a few arrays of
integers, derived from the functions that cut trees, and no network costs a
compilation. `ranking` does the same inside compiled programs.
"""

import dataclasses
import functools

import jax
import numpy as np

from minarch_jax.architectures import Architecture, Problem, vectors
from minarch_jax.pruning import granularity as shapes
from minarch_jax.pruning import ranking, scopes, selection


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
  """The groups of a network's N entries, and who competes with whom.

  Attributes:
    covers: int [J, N], the groups that an entry is of; G, beyond the last,
      where it is of fewer than J.
    scored: int [P], the entries that give groups their scores, by groups.
    starts: int [G], where each group's begin.
    pools: int [G], the pool in which each competes.
    layers: which groups are a layer's, by its name.
    order: what `ranking.kept_groups` reads, without keys.
  """

  covers: np.ndarray
  scored: np.ndarray
  starts: np.ndarray
  pools: np.ndarray
  layers: dict[str, slice]
  order: ranking.Ranking

  def rank(self, scores: np.ndarray, alive: np.ndarray, pool: str):
    """Orders groups as `ranking.rank` does.

    Args:
      scores: float32 [S, N], importance of each entry of S networks.
      alive: bool [S, N], entries that are still there; the others go first.
      pool: one of `granularity.POOLS`, or "first".

    Returns:
      int32 [S, G], the place of each group in its pool; 0 = the first to go.
    """
    rows = zip(scores, alive, strict=True)
    return np.stack([self._places(*row, pool) for row in rows])

  def _places(self, scores: np.ndarray, alive: np.ndarray, pool: str):
    there = alive[self.scored]
    size = np.add.reduceat(there, self.starts, dtype=np.int32)
    if pool == shapes.FIRST:
      value = scores[self.scored[self.starts]]
    else:
      each = np.where(there, scores[self.scored], 0).astype(np.float64)
      value = shapes.POOLS[pool](np.add.reduceat(each, self.starts), size)
    value = value.astype(np.float32)
    value[np.isnan(value)] = -np.inf  # below everything
    # Sorted stably: among equal scores the first in row-major order go first.
    first_to_go = np.lexsort((value, size > 0, self.pools))
    places = np.empty(len(first_to_go), np.int32)
    places[first_to_go] = np.arange(len(first_to_go), dtype=np.int32)
    return places - self._first_places[self.pools]

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    return np.bincount(self.pools)

  @functools.cached_property
  def _first_places(self) -> np.ndarray:
    return (np.cumsum(self._lengths) - self._lengths).astype(np.int32)

  def marks(self, places: np.ndarray, sparsity: float) -> np.ndarray:
    """Marks the groups kept at a sparsity: bool [S, G].

    Raises:
      ValueError: as `ranking.masks_at`.
    """
    ranking.check_sparsity(self.order.plan, sparsity)
    kept = np.asarray(ranking.kept_groups(self.order, sparsity))
    return places >= (self._lengths - kept)[self.pools]

  def masks(self, marks: np.ndarray) -> np.ndarray:
    """Marks the entries of which every group is marked: bool [S, N]."""
    marks = np.pad(marks, [(0, 0), (0, 1)], constant_values=True)
    return np.logical_and.reduce([marks[:, cover] for cover in self.covers])


def groups_of(
  architecture: Architecture, problem: Problem, scope: str, granularity: str
) -> Groups:
  """Cuts the vector of a network into groups.

  Args:
    architecture, problem: the network, not a parent.
    scope, granularity: as for `ranking.rank`.

  Raises:
    ValueError: as `ranking.rank`.
  """
  chosen, _ = shapes.parse(granularity)
  # Whatever is registered under these names now.
  meaning = chosen, scopes.find(scope, chosen.rows)
  return _groups_of(architecture, problem, scope, granularity, meaning)


@functools.lru_cache(maxsize=4096)
def _groups_of(architecture, problem, scope, granularity, meaning) -> Groups:
  """As `groups_of`, for what the names mean."""
  del meaning
  vector = vectors.vector_of(architecture, problem)
  numbers = vector.tree(np.arange(vector.size, dtype=np.int32))
  grouping = ranking.Grouping(granularity, spec=vector.spec)
  plan = ranking.planned(numbers, scope, grouping)
  leaves = jax.tree.leaves(numbers)
  there = [np.ones(leaf.shape, bool) for leaf in leaves]
  covers, pairs, layers, first, end = [], [], {}, leaves[0], 0
  for layer in plan.layers:
    # The number of each group's first entry: the groups, and their shape.
    first, _ = plan.granularity.group(layer, leaves, there, shapes.FIRST)
    own = slice(end, end := end + first.size)
    groups = np.arange(own.start, own.stop, dtype=np.int32)
    scored = [member.leaf for member in layer.members if member.scored]
    for leaf, of_entry in plan.granularity.expand(
      layer, groups.reshape(first.shape)
    ).items():
      both = leaves[leaf].reshape(-1), of_entry.reshape(-1)
      _cover(covers, *both, vector.size)
      pairs += [both] if leaf in scored else []
    layers[layer.name] = own
  entries, of_entries = map(np.concatenate, zip(*pairs, strict=True))
  by_group = np.argsort(of_entries, kind="stable")
  sizes = [own.stop - own.start for own in layers.values()]
  pools = ranking.pools_of(plan, sizes, first.shape[-1])
  cover = np.stack(covers)
  return Groups(
    np.where(cover < 0, end, cover),
    entries[by_group],
    np.flatnonzero(np.diff(of_entries[by_group], prepend=-1)),
    _competing(pools),
    layers,
    ranking.Ranking(
      **ranking.counts_of(plan, pools),
      keys=np.zeros(0, np.uint32),
      alive=(),
      plan=plan,
      pools=pools,
    ),
  )


def _cover(covers: list, entries: np.ndarray, groups: np.ndarray, size: int):
  """Writes down the groups of entries beside those that they are of already."""
  for cover in covers:
    if (cover[entries] < 0).all():
      cover[entries] = groups
      return
  covers.append(np.full(size, -1, np.int32))
  covers[-1][entries] = groups


def _competing(pools: selection.Pools) -> np.ndarray:
  """The pool of every group."""
  lengths = {
    "one": [sum(pools.sizes)],
    "arrays": pools.sizes,
    "rows": [pools.width] * sum(pools.rows),
  }[pools.kind]
  return np.repeat(np.arange(len(lengths)), lengths)


def shuffled(
  masks: np.ndarray, draws: np.ndarray, vector: vectors.Vector
) -> np.ndarray:
  """Keeps as many entries of every leaf, those with the largest draws.

  What `controls.shuffled` does to trees.

  Args:
    masks: bool [S, N], 1 = kept.
    draws: float32 [S, N], uniform.
    vector: where the leaves stand.
  """
  found = np.zeros_like(masks)
  for own in vector.slices.values():
    order = np.argsort(draws[:, own], axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1)
    kept = masks[:, own].sum(-1, keepdims=True)
    found[:, own] = rank >= rank.shape[-1] - kept
  return found
