"""Places of all groups in the order of removal, for grids of many sparsities.

One sort per ranking; afterwards the masks of any sparsity are one comparison
per leaf, where bisection would search again every time.
"""

import dataclasses

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import ranking, scopes
from minarch_jax.types import Array, Masks


@flax.struct.dataclass
class Positions:
  """A ranking whose groups know when they go.

  Attributes:
    places: int32 [pools, n] for each layer, 0 = the first of its pool to go.
    order: the ranking, without its keys.
  """

  places: tuple[jax.Array, ...]
  order: ranking.Ranking


def _shared(plan: ranking.Plan) -> bool:
  return scopes.SCOPES[plan.scope].pooled and not plan.granularity.rows


def positions(order: ranking.Ranking) -> Positions:
  """Sorts a ranking's groups once, in the order that `masks_at` cuts.

  Groups that do not exist go first, then by score; among equal scores the
  first in row-major order.
  """
  keys = order.keys
  sizes = [key.size for key in keys]
  first = np.cumsum([0, *sizes])
  flat = jnp.concatenate([key.reshape(-1) for key in keys])
  here = lax.iota(jnp.int32, flat.size)
  if _shared(order.plan):
    starts = jnp.zeros_like(here)
  else:
    # Pools lie end to end, so a pool's start also is its number in the sort.
    starts = jnp.concatenate(
      [
        start + lax.iota(jnp.int32, key.size) // key.shape[1] * key.shape[1]
        for start, key in zip(first.tolist(), keys, strict=False)
      ]
    )
  _, _, moved = lax.sort((starts, flat, here), num_keys=2, is_stable=True)
  places = jnp.zeros_like(here).at[moved].set(here, unique_indices=True)
  parts = jnp.split(places - starts, first[1:-1])
  shapes = (key.shape for key in keys)
  return Positions(
    tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=True)),
    dataclasses.replace(order, keys=()),
  )


def masks_at(sorted_order: Positions, sparsity: float | Array) -> Masks:
  """Makes the masks that `ranking.masks_at` makes, by comparison alone."""
  order, every = sorted_order.order, sorted_order.places
  kept = ranking.kept_groups(order, sparsity)
  if _shared(order.plan):
    total = sum(places.size for places in every)
    marks = [places >= total - kept for places in every]
  else:
    pools = np.cumsum([len(places) for places in every])[:-1]
    marks = [
      places >= places.shape[1] - part[:, None]
      for places, part in zip(every, jnp.split(kept, pools), strict=True)
    ]
  return ranking.masks_of(order, marks)
