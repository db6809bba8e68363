"""Masks and what is done with them; 1 = kept, a scalar 1 = never pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from minarch_jax import leaves
from minarch_jax.pruning import trees
from minarch_jax.types import Masks, Params


def apply_masks(params: Params, masks: Masks) -> Params:
  """Sets masked parameters to exactly zero, whatever they were (NaN too).

  Args:
    params: a tree of arrays; other leaves (functions, PRNG keys, Python
      numbers) are left alone.
    masks: a tree of the same structure, each leaf of its parameter's shape or
      a scalar.

  Raises:
    ValueError: the masks were made for another tree.
  """
  marks = trees.like("masks", masks, params)
  found, treedef = jax.tree.flatten(params)
  arrays = {i: leaf for i, leaf in enumerate(found) if leaves.is_array(leaf)}
  changed = _apply(arrays, {i: marks[i] for i in arrays})
  return treedef.unflatten(
    [changed.get(i, leaf) for i, leaf in enumerate(found)]
  )


@jax.jit  # whole: a notebook would wait for two operations of every shape
def _apply(params, masks):
  def change(leaf, mask):
    leaf = jnp.asarray(leaf)
    return jnp.where(jnp.asarray(mask, bool), leaf, jnp.zeros_like(leaf))

  return jax.tree.map(change, params, masks)


def masked(
  tx: optax.GradientTransformation, masks: Masks
) -> optax.GradientTransformationExtraArgs:
  """Makes an optimizer keep masked parameters exactly zero.

  >>> masks = ma.prune(params, 0.6)
  >>> tx = ma.masked(optax.adam(1e-3), masks)
  >>> state = tx.init(params)

  The inner optimizer sees masked gradients and parameters, so global norms,
  moments and weight decay are those of the sparse network; then every update of
  a masked parameter is replaced by minus the parameter. Parameters that were
  not masked before are zero after the first step.

  Args:
    tx: any optax optimizer.
    masks: as made by `prune`; may be traced and mapped.

  Raises:
    ValueError: `update` was called without params.
  """
  inner = optax.with_extra_args_support(tx)

  def init(params):
    return inner.init(apply_masks(params, masks))

  def update(updates, state, params=None, **extra):
    if params is None:
      raise ValueError(
        "masked(tx, masks).update needs params: call "
        "tx.update(grads, state, params)"
      )
    grads, sparse = apply_masks(updates, masks), apply_masks(params, masks)
    updates, state = inner.update(grads, state, sparse, **extra)
    found, treedef = jax.tree.flatten(updates)
    marks = trees.like("masks", masks, params)
    parts = zip(found, jax.tree.leaves(params), marks, strict=True)
    return treedef.unflatten(
      [
        jnp.where(jnp.asarray(mask, bool), u, -p) if leaves.is_array(p) else u
        for u, p, mask in parts
      ]
    ), state

  return optax.GradientTransformationExtraArgs(init, update)


def count(masks: Masks, within: Masks | None = None) -> jax.Array:
  """Counts the kept entries of the leaves that are pruned: int32 scalar.

  Args:
    masks: 1 = kept; leaves with a scalar mask do not count.
    within: entries that exist, for a network inside a parent (None = all).
  """
  counts = _counts(masks, within).values()
  return sum((kept for kept, _ in counts), jnp.int32(0))


def sparsity(masks: Masks, within: Masks | None = None) -> jax.Array:
  """Returns the fraction removed, of the leaves that are pruned: float32."""
  counts = _counts(masks, within).values()
  total = sum((size for _, size in counts), jnp.int32(0))
  return 1.0 - count(masks, within) / jnp.maximum(total, 1)


def dead_layers(
  masks: Masks, within: Masks | None = None
) -> dict[str, jax.Array]:
  """Says of each pruned leaf whether nothing of it is left: bool scalars.

  >>> masks = ma.prune(params, 0.0, scope={"output": 0.9})
  >>> dead = ma.dead_layers(masks)
  >>> [name for name, gone in dead.items() if gone]
  []
  """
  return {
    "/".join(path): (kept == 0) & (size > 0)
    for path, (kept, size) in _counts(masks, within).items()
  }


def _counts(masks, within) -> dict[trees.Path, tuple[jax.Array, jax.Array]]:
  """(kept, existing) of each leaf whose mask is not a scalar, by path."""
  if within is None:
    within = jax.tree.map(lambda _: True, masks)
  trees.check_like("within", within, masks)
  out = {}
  exists = jax.tree.leaves(within)
  for (path, mask), entry in zip(
    trees.named_leaves(masks), exists, strict=True
  ):
    if np.ndim(mask):
      entry = jnp.broadcast_to(jnp.asarray(entry, bool), mask.shape)
      kept = jnp.sum(jnp.asarray(mask, bool) & entry, dtype=jnp.int32)
      out[path] = kept, jnp.sum(entry, dtype=jnp.int32)
  return out
