"""Sparse training: connections move between steps, their number does not.

An update drops the weakest connections of every layer and grows as many
elsewhere. It is a function between training steps, never inside one.
"""

from collections.abc import Callable
import functools
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


def rigl(
  params: Params,
  masks: Masks,
  fraction: float | Array,
  grads: Params,
  *,
  within: Masks | None = None,
) -> Moved:
  """Moves connections to where the dense gradient is largest.

  >>> masks = ma.prune(params, 0.8)
  >>> grads = jax.grad(loss)(ma.apply_masks(params, masks), batch)
  >>> moved = ma.rigl(params, masks, 0.3, grads)
  >>> bool(ma.sparsity(moved.masks) == ma.sparsity(masks))
  True

  RigL (Evci et al. 2020, arXiv 1911.11134, equation 1). Each layer drops its
  `fraction` of smallest kept weights and grows as many among all entries that
  are then absent, the just dropped included. The number of connections of each
  layer stays the same exactly.

  Args:
    params, masks: one network; leaves with a scalar mask are left alone.
    fraction: share of the kept connections that move, in [0, 1); may be traced
      (see `moving_fraction`).
    grads: gradient of the loss at the masked params, of all entries.
    within: entries that exist, for a network inside a parent (None = all).

  Raises:
    ValueError: a fraction outside [0, 1), or trees of different structure.
  """
  return _update(params, masks, fraction, within, grads=grads)


def sparse_evolution(
  params: Params,
  masks: Masks,
  fraction: float | Array,
  key: jax.Array,
  *,
  within: Masks | None = None,
) -> Moved:
  """Moves connections to random places: the control of `rigl`.

  >>> masks = ma.prune(params, 0.8)
  >>> moved = ma.sparse_evolution(params, masks, 0.3, jax.random.key(1))
  >>> bool(ma.sparsity(moved.masks) == ma.sparsity(masks))
  True

  SET (Mocanu et al. 2018, arXiv 1707.04780, algorithm 1). Drops as `rigl`.

  Args:
    params, masks, fraction, within: as for `rigl`.
    key: a new one for each update.

  Raises:
    ValueError: as for `rigl`.
  """
  return _update(params, masks, fraction, within, key=key)


def _update(params, masks, fraction, within, grads=None, key=None) -> Moved:
  """Drops the smallest weights; grows by gradient, or anywhere by key."""
  counting.check(fraction)
  marks = trees.like("masks", masks, params)
  named, structure = trees.named_leaves(params), jax.tree.structure(params)
  moving = [i for i, mask in enumerate(marks) if np.ndim(mask)]
  if not moving:
    return Moved(params, masks)

  def chosen(what, tree):
    found = None if tree is None else trees.like(what, tree, params)
    return None if found is None else [found[i] for i in moving]

  exact = fraction if isinstance(fraction, int | float) else None
  moved = _moved(
    tuple((named[i][0], np.shape(marks[i])) for i in moving),
    exact,  # a Python number is counted exactly, and there are few of them
    fraction if exact is None else None,
    [(named[i][1], marks[i]) for i in moving],
    chosen("within", within),
    chosen("grads", grads),
    key,
  )
  leaves = [leaf for _, leaf in named]
  for i, (leaf, mask) in zip(moving, moved, strict=True):
    leaves[i], marks[i] = leaf, mask
  return Moved(structure.unflatten(leaves), structure.unflatten(marks))


# Compiled whole: one operation after the other takes seconds in a notebook.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _moved(shapes, exact, fraction, pairs, exists, grads, key):
  """The weights and masks, after an update, of the leaves that are pruned."""
  fraction = fraction if exact is None else exact
  if grads is None:
    growths = random.uniforms(key, shapes)
  else:
    growths = [jnp.abs(slope) for slope in grads]
  exists = exists or [None] * len(pairs)
  moved = []
  for (leaf, mask), growth, entries in zip(pairs, growths, exists, strict=True):
    mask = jnp.asarray(mask, bool)
    kept, mask = _move(leaf, mask, growth, fraction, entries)
    moved.append((jnp.where(kept, leaf, jnp.zeros_like(leaf)), mask))
  return moved


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


class Move(NamedTuple):
  """A way to move connections, as an entry of `registries.MOVES`.

  Attributes:
    update: `update(params, masks, fraction, key, grads, within) -> Moved`, all
      of one network; `grads` is None unless asked for.
    needs_gradient: whether it reads the gradient of the loss.
  """

  update: Callable[..., Moved]
  needs_gradient: bool = False


def _rigl(params, masks, fraction, key, grads, within) -> Moved:
  del key
  return rigl(params, masks, fraction, grads, within=within)


def _set(params, masks, fraction, key, grads, within) -> Moved:
  del grads
  return sparse_evolution(params, masks, fraction, key, within=within)


RIGL = Move(_rigl, needs_gradient=True)
SET = Move(_set)
