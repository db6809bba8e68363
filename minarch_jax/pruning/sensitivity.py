"""Which layers can be pruned, and whether seeds agree on the weights."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import counting, selection, trees
from minarch_jax.pruning import masks as masking
from minarch_jax.pruning import ranking as rankings
from minarch_jax.types import Array, Masks, Params


class Sensitivity(NamedTuple):
  """One pruning curve per layer: a heat map.

  Attributes:
    layers: names of the leaves, or of the axes of units.
    sparsities: [K].
    values: [L, K, ...], what `evaluate` returned when only that layer was
      pruned to that sparsity.
  """

  layers: tuple[str, ...]
  sparsities: tuple[float, ...]
  values: jax.Array


def layer_sensitivity(
  params: Params,
  ranking: rankings.Ranking,
  sparsities: Sequence[float],
  evaluate: Callable[[Params], Array],
) -> Sensitivity:
  """Prunes one layer at a time and evaluates: `curves` with their names.

  >>> ranking = ma.rank(jax.tree.map(abs, params))
  >>> found = ma.layer_sensitivity(
  ...   params, ranking, (0.0, 0.9), lambda p: loss(p, batch))
  >>> found.layers, found.values.shape
  (('hidden_0/kernel', 'output/kernel'), (2, 2))

  Args:
    params, ranking, evaluate: as for `curves`.
    sparsities: fractions of a layer's groups removed, in [0, 1).

  Raises:
    ValueError: a sparsity outside [0, 1).
  """
  for sparsity in sparsities:
    counting.check(sparsity)
  grid = jnp.asarray(sparsities, jnp.float32)
  values = curves(params, ranking, grid, evaluate)
  names = tuple(layer.name for layer in ranking.plan.layers)
  return Sensitivity(names, tuple(sparsities), values)


def curves(
  params: Params,
  ranking: rankings.Ranking,
  sparsities: Array,
  evaluate: Callable[[Params], Array],
) -> jax.Array:
  """Evaluates a network with each layer pruned alone to each sparsity.

  One loop over all cells, so `evaluate` is compiled once, however many layers.

  Args:
    params: one network.
    ranking: of its scores; the scope does not matter.
    sparsities: float32 [K], fractions of a layer's groups removed; may be
      traced. Each layer keeps at least one group.
    evaluate: from pruned params to a number or array.

  Returns:
    [L, K, ...], what `evaluate` returned.
  """
  count, grid = len(ranking.plan.layers), jnp.asarray(sparsities)

  def at(cell):
    return evaluate(masking.apply_masks(params, alone(ranking, *cell)))

  cells = (
    jnp.repeat(jnp.arange(count), len(grid)),
    jnp.tile(grid, count),
  )
  values = jax.lax.map(at, cells)
  return values.reshape(count, len(grid), *values.shape[1:])


def alone(
  ranking: rankings.Ranking, layer: int | Array, sparsity: float | Array
) -> Masks:
  """Makes the masks that cut layer number `layer` and leave the others whole.

  What a granularity couples (the bias and outgoing weights of a unit) is cut
  together, as in `masks_at`, also past layers that the network lacks.

  Args:
    ranking: of the network's scores; the scope does not matter.
    layer: its number in `ranking.plan.layers`; may be traced.
    sparsity: fraction of its groups removed; may be traced.
  """
  layerwise = rankings.layerwise(ranking)
  layers = np.arange(len(ranking.plan.layers))
  cut = np.repeat(layers, ranking.pools.counts) == layer
  kept = rankings.kept_groups(layerwise, sparsity)
  kept = jnp.where(cut, kept, jnp.asarray(ranking.sizes))
  marks = selection.keep_largest(ranking.keys, kept, layerwise.pools)
  return rankings.masks_of(layerwise, marks)


def jaccard(a: Masks, b: Masks, within: Masks | None = None) -> jax.Array:
  """Returns |A and B| / |A or B| of two masks: 1 = the same weights.

  Two random masks that keep a fraction d overlap by d / (2 - d). Leaves with a
  scalar mask do not count; two empty masks overlap by 1.

  Args:
    a, b: masks of the same structure.
    within: entries that exist, for networks inside a parent (None = all).
  """
  trees.check_like("b", b, a)
  both = masking.count(_combined(jnp.logical_and, a, b), within)
  either = masking.count(_combined(jnp.logical_or, a, b), within)
  return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def _combined(operation, a, b):
  return jax.tree.map(
    lambda x, y: operation(jnp.asarray(x, bool), jnp.asarray(y, bool)), a, b
  )


def overlaps(masks: Masks, within: Masks | None = None) -> jax.Array:
  """Returns the Jaccard overlap of every pair of S stacked masks: [S, S].

  >>> stacked = jax.tree.map(lambda w: jax.numpy.stack([w, -w, w**3]), params)
  >>> masks = jax.vmap(lambda p: ma.prune(p, 0.5))(stacked)
  >>> ma.overlaps(masks).tolist()
  [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

  Args:
    masks: leaves [S, ...]; [S] where a leaf was not pruned.
    within: entries that exist, without the leading axis.
  """
  masks = jax.tree.map(lambda leaf: jnp.asarray(leaf, bool), masks)
  count = jax.tree.leaves(masks)[0].shape[0]

  def row(i):
    one = jax.tree.map(lambda leaf: leaf[i], masks)
    return jax.vmap(lambda other: jaccard(one, other, within))(masks)

  return jax.lax.map(row, jnp.arange(count))
