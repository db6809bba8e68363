"""Where the leaves of a network stand in a vector of all its parameters.

The leaves one after the other, in the order of `jax.tree.leaves`. Arrays may
have leading axes (seeds): [..., N] stands for a tree of [..., *shape].
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np

from minarch_jax.architectures.architecture import Architecture
from minarch_jax.architectures.specs import Path, Problem, Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Vector:
  """The leaves of a network in a vector.

  Attributes:
    spec: its leaves.
    paths: their paths, in order.
    ends: int [leaves], where each ends.
  """

  spec: Spec
  paths: tuple[Path, ...]
  ends: tuple[int, ...]

  @property
  def size(self) -> int:
    return self.ends[-1]

  @functools.cached_property
  def shapes(self) -> dict[Path, tuple[int, ...]]:
    return {leaf.path: self.spec.shape(leaf) for leaf in self.spec.leaves}

  @functools.cached_property
  def slices(self) -> dict[Path, slice]:
    starts = (0, *self.ends)
    return {
      path: slice(*pair)
      for path, pair in zip(self.paths, itertools.pairwise(starts), strict=True)
    }

  def tree(self, values: np.ndarray) -> dict[str, Any]:
    """Cuts [..., N] into the leaves of a tree of nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, own in self.slices.items():
      node = tree
      for name in path[:-1]:
        node = node.setdefault(name, {})
      leaf = values[..., own]
      node[path[-1]] = leaf.reshape(*leaf.shape[:-1], *self.shapes[path])
    return tree

  def of(self, tree: Any) -> np.ndarray:
    """Joins the leaves of a tree [..., *shape] to [..., N]."""
    parts = []
    for path in self.paths:
      leaf = functools.reduce(lambda node, name: node[name], path, tree)
      lead = np.shape(leaf)[: np.ndim(leaf) - len(self.shapes[path])]
      parts.append(np.asarray(leaf).reshape(*lead, -1))
    return np.concatenate(parts, axis=-1)

  def counts(self, marks: np.ndarray) -> np.ndarray:
    """Counts marks [..., N] by leaf: int64 [..., leaves], in `spec`'s order."""
    starts = (0, *self.ends[:-1])
    counts = np.add.reduceat(marks, starts, axis=-1, dtype=np.int64)
    place = {path: i for i, path in enumerate(self.paths)}
    return counts[..., [place[leaf.path] for leaf in self.spec.leaves]]


@functools.lru_cache(maxsize=4096)
def vector_of(architecture: Architecture, problem: Problem) -> Vector:
  """Says where a network's leaves stand."""
  spec = architecture.spec(problem)
  shapes = {leaf.path: spec.shape(leaf) for leaf in spec.leaves}
  paths = tuple(sorted(shapes))
  sizes = (math.prod(shapes[path]) for path in paths)
  return Vector(spec, paths, tuple(itertools.accumulate(sizes)))


@functools.lru_cache(maxsize=4096)
def inside(
  architecture: Architecture, parent: Architecture, problem: Problem
) -> np.ndarray:
  """Says where a member's entries stand in its parent's vector: int64 [N]."""
  own, wide = (vector_of(each, problem) for each in (architecture, parent))
  numbers = wide.tree(np.arange(wide.size))
  cut = []
  for path in own.paths:
    leaf: Any = functools.reduce(lambda node, name: node[name], path, numbers)
    corner = tuple(slice(0, size) for size in own.shapes[path])
    cut.append(leaf[corner].reshape(-1))
  return np.concatenate(cut)
