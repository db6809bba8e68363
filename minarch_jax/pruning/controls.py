"""What a pruned network must beat before its mask means anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import random
from minarch_jax.architectures import Architecture, Shape
from minarch_jax.pruning import selection, trees
from minarch_jax.types import Masks


def shuffled(
  masks: Masks, key: jax.Array, within: Masks | None = None
) -> Masks:
  """Shuffles every layer's mask: as many weights, at other places.

  Tells whether it matters which weights of a layer are kept, or only how many
  (Frankle et al. 2021, arXiv 2009.08576).

  Args:
    masks: of one network; scalar masks stay as they are.
    key: for the places.
    within: entries that exist, for a network inside a parent (None = all).
  """
  if within is None:
    within = jax.tree.map(lambda _: True, masks)
  trees.check_like("within", within, masks)
  named = trees.named_leaves(masks)
  draws = random.uniforms(key, [(path, np.shape(mask)) for path, mask in named])
  leaves, treedef = jax.tree.flatten(masks)
  layers = [i for i, leaf in enumerate(leaves) if np.ndim(leaf)]
  if not layers:
    return masks
  exists = [
    jnp.broadcast_to(jnp.asarray(here, bool), np.shape(leaf))
    for here, leaf in zip(jax.tree.leaves(within), leaves, strict=True)
  ]
  kept = [
    jnp.sum(jnp.asarray(leaves[i], bool) & exists[i], dtype=jnp.int32)
    for i in layers
  ]
  # One table for all layers: a search for each would be compiled for each.
  pools = selection.pools_of([np.size(leaves[i]) for i in layers], "arrays")
  keys = selection.sort_keys(
    *(
      selection.lay_out(pools, [tree[i] for i in layers])
      for tree in (draws, exists)
    )
  )
  marks = selection.keep_largest(keys, jnp.stack(kept), pools)
  for i, part in zip(layers, selection.take_apart(pools, marks), strict=True):
    leaves[i] = part.reshape(np.shape(leaves[i]))
  return jax.tree.unflatten(treedef, leaves)


def small_dense(
  architecture: Architecture,
  num_params: int,
  input_shape: Shape,
  num_classes: int,
) -> Architecture:
  """Shrinks all widths in proportion until the network has few parameters.

  The dense control of a pruned network with `num_params` parameters left:
  trained for equal steps, it says whether pruning was worth it.

  Args:
    architecture: of the network that was pruned.
    num_params: parameters left, biases and norms included.
    input_shape, num_classes: of the task.

  Returns:
    The largest shrunk architecture with at most `num_params` parameters, or
    the smallest there is (all widths 1) when even that has more.
  """

  def shrunk(parts: int) -> Architecture:
    widths = tuple(
      max(1, width * parts // steps) for width in architecture.widths
    )
    return dataclasses.replace(architecture, widths=widths)

  steps = 1000
  low, high = 0, steps
  while low < high:
    middle = (low + high + 1) // 2
    found = shrunk(middle).num_params(input_shape, num_classes)
    low, high = (middle, high) if found <= num_params else (low, middle - 1)
  return shrunk(low)
