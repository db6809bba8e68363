"""Pruning and quantization together: in which order, and do damages add."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from minarch_jax import types

# A tree of parameters -> masks of its structure, 1 = kept; for example
# lambda p: pruning.prune(p, 0.6).
Prune = Callable[[types.Params], types.Masks]
Joint = Callable[[types.Params, Prune, types.Transform], types.Params]


def _masked(params: types.Params, masks: types.Masks) -> types.Params:
  if jax.tree.structure(params) != jax.tree.structure(masks):
    raise ValueError(
      f"masks have the structure {jax.tree.structure(masks)}, the parameters "
      f"have {jax.tree.structure(params)}; prune the tree that is quantized"
    )
  return jax.tree.map(
    lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, masks
  )


def prune_first(
  params: types.Params, prune: Prune, rounds: types.Transform
) -> types.Params:
  """Prunes the trained weights, then spreads the codes over what is left.

  A pruned largest weight narrows its channel's range.
  """
  return rounds(_masked(params, prune(params)))


def quantize_first(
  params: types.Params, prune: Prune, rounds: types.Transform
) -> types.Params:
  """Rounds the trained weights, then prunes the rounded ones.

  The criterion sees codes: equal codes tie, and scales are of the dense
  network.
  """
  rounded = rounds(params)
  return _masked(rounded, prune(rounded))


ORDERS: dict[str, Joint] = {
  "prune_first": prune_first,
  "quantize_first": quantize_first,
}


def interaction(
  dense: types.Array,
  pruned: types.Array,
  quantized: types.Array,
  both: types.Array,
) -> types.Array:
  """Returns how far the joint damage exceeds the sum of the two.

  Damage is accuracy lost against `dense`. 0: damages add; positive: together
  they hurt more than their sum. Elementwise, so paired by seed.

  Args:
    dense: accuracies of the trained networks.
    pruned: of the same after pruning alone.
    quantized: after quantization alone.
    both: after both.
  """
  return (dense - both) - (dense - pruned) - (dense - quantized)
