"""Sparse training: connections move between steps, their number does not.

An update drops the weakest connections of every layer and grows as many
elsewhere. It is a function between training steps, never inside one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import random
from minarch_jax.pruning import counting, selection, trees
from minarch_jax.types import Array, Masks, Params


class Moved(NamedTuple):
  """Parameters and masks after an update; grown weights start at zero."""

  params: Params
  masks: Masks


# (path, weights, gradient or None, key or None) -> where to grow first.
Growth = Callable[
  [trees.Path, Array, Array | None, jax.Array | None], jax.Array
]


def _at_random(path, weights, gradient, key):
  """SET (Mocanu et al. 2018, arXiv 1707.04780, algorithm 1)."""
  del gradient
  return random.uniforms(key, [(path, weights.shape)])[0]


def _by_gradient(path, weights, gradient, key):
  """RigL (Evci et al. 2020, arXiv 1911.11134, equation 1): largest |dL/dw|."""
  del path, weights, key
  return jnp.abs(gradient)


UPDATES: dict[str, Growth] = {"set": _at_random, "rigl": _by_gradient}


def update(
  name: str,
  params: Params,
  masks: Masks,
  fraction: float | Array,
  *,
  grads: Params | None = None,
  key: jax.Array | None = None,
  within: Masks | None = None,
) -> Moved:
  """Moves a fraction of every layer's connections.

  Each layer drops its `fraction` of smallest kept weights and grows as many
  among all entries that are then absent, the just dropped included. The number
  of connections of each layer stays the same exactly.

  Args:
    name: "set" (grows at random, needs key) or "rigl" (grows where the dense
      gradient is largest, needs grads).
    params, masks: one network; leaves with a scalar mask are left alone.
    fraction: share of the kept connections that move, in [0, 1); may be traced
      (see `moving_fraction`).
    grads: gradient of the loss at the masked params, of all entries.
    key: a new one for each update.
    within: entries that exist, for a network inside a parent (None = all).

  Raises:
    ValueError: an unknown name, a fraction outside [0, 1), a missing argument,
      or trees of different structure.
  """
  if name not in UPDATES:
    raise ValueError(f"update {name!r} is not one of {', '.join(UPDATES)}")
  for what, given, needed in (("grads", grads, "rigl"), ("key", key, "set")):
    if given is None and name == needed:
      raise ValueError(f"update {name!r} needs {what}=")
  counting.check(fraction)
  for what, tree in (("masks", masks), ("grads", grads), ("within", within)):
    if tree is not None:
      trees.check_like(what, tree, params)
  named = trees.named_leaves(params)
  everywhere: Sequence = [None] * len(named)
  slopes = everywhere if grads is None else jax.tree.leaves(grads)
  exists = everywhere if within is None else jax.tree.leaves(within)
  moved = []
  for (path, leaf), mask, slope, entries in zip(
    named, jax.tree.leaves(masks), slopes, exists, strict=True
  ):
    if np.ndim(mask):
      growth = UPDATES[name](path, leaf, slope, key)
      mask = _move(leaf, jnp.asarray(mask, bool), growth, fraction, entries)
      leaf, mask = jnp.where(mask[0], leaf, 0), mask[1]
    moved.append((leaf, mask))
  unflatten = jax.tree.structure(params).unflatten
  return Moved(*(unflatten(list(part)) for part in zip(*moved, strict=True)))


def _move(leaf, mask, growth, fraction, entries):
  """The connections that survive, and those there are afterwards."""
  existing = True if entries is None else jnp.asarray(entries, bool)
  total = jnp.sum(mask, dtype=jnp.int32)
  kept = counting.kept_count(fraction, total)

  survivors = selection.best(jnp.abs(leaf), mask, kept)
  grown = selection.best(growth, ~survivors & existing, total - kept)
  return survivors, survivors | grown


def moving_fraction(
  step: int | Array, num_steps: int, initial: float = 0.3
) -> jax.Array:
  """Returns initial / 2 * (1 + cos(pi step / num_steps)): RigL's decay."""
  progress = jnp.clip(jnp.asarray(step) / num_steps, 0, 1)
  return initial / 2 * (1 + jnp.cos(jnp.pi * progress))
