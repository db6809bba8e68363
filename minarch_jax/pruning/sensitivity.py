"""Which layers can be pruned, and whether seeds agree on the weights."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import masks as masking
from minarch_jax.pruning import ranking as rankings
from minarch_jax.pruning import trees
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


def sensitivity(
  params: Params,
  ranking: rankings.Ranking,
  sparsities: Sequence[float],
  evaluate: Callable[[Params], Array],
) -> Sensitivity:
  """Prunes one layer at a time and evaluates.

  What a granularity couples (the bias and outgoing weights of a unit) is cut
  together, as in `masks_at`.

  Args:
    params: one network.
    ranking: of its scores; the scope does not matter.
    sparsities: fractions of a layer's groups removed; each layer keeps at
      least one group.
    evaluate: from pruned params to a number or array.
  """
  grid = jnp.asarray(sparsities, jnp.float32)
  layers = ranking.plan.layers
  values = []
  for i in range(len(layers)):
    alone = only(ranking, i)

    def at(sparsity, alone=alone):
      masks = rankings.masks_at(alone, sparsity)
      return evaluate(masking.apply_masks(params, masks))

    values.append(jax.lax.map(at, grid))
  names = tuple(layer.name for layer in layers)
  return Sensitivity(names, tuple(sparsities), jnp.stack(values))


def table(found: Sensitivity) -> list[dict[str, Any]]:
  """Lists layer, sparsity and value of every cell: the rows of a heat map.

  Values with further axes, as of seeds, stay arrays.
  """
  values = np.asarray(found.values)
  return [
    {"layer": layer, "sparsity": sparsity, "value": values[i, j]}
    for i, layer in enumerate(found.layers)
    for j, sparsity in enumerate(found.sparsities)
  ]


def only(ranking: rankings.Ranking, layer: int) -> rankings.Ranking:
  """Restricts a ranking to its layer number `layer`; the others stay whole."""
  one = slice(layer, layer + 1)
  pools = ranking.pools
  first = sum(pools.counts[:layer])
  row = sum(pools.rows[:layer])
  kind = "rows" if pools.kind == "rows" else "arrays"
  return dataclasses.replace(
    ranking,
    keys=ranking.keys[row : row + pools.rows[layer]],
    sizes=ranking.sizes[first : first + pools.counts[layer]],
    density=ranking.density[one],
    plan=dataclasses.replace(
      ranking.plan,
      layers=ranking.plan.layers[one],
      sparsities=(None,),
      scope="layerwise",
    ),
    pools=dataclasses.replace(pools, sizes=pools.sizes[one], kind=kind),
  )


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
