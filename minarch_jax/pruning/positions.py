"""Places of all groups in the order of removal, for grids of many sparsities.

One sort per ranking; afterwards the masks of any sparsity are one comparison
per leaf, where bisection would search again every time.
"""

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import ranking
from minarch_jax.types import Array, Masks


@flax.struct.dataclass
class Positions:
  """A ranking whose groups know when they go.

  Attributes:
    places: int32 table of the ranking, 0 = the first of its pool to go.
    order: the ranking.
  """

  places: jax.Array
  order: ranking.Ranking


def positions(order: ranking.Ranking) -> Positions:
  """Sorts a ranking's groups once, in the order that `masks_at` cuts.

  Groups that do not exist go first, then by score; among equal scores the
  first in row-major order.
  """
  starts, _ = _pools(order)
  here = lax.iota(jnp.int32, order.keys.size)
  flat = (jnp.asarray(starts), order.keys.reshape(-1), here)
  _, _, moved = lax.sort(flat, num_keys=2, is_stable=True)
  places = jnp.zeros_like(here).at[moved].set(here, unique_indices=True)
  return Positions((places - starts).reshape(order.keys.shape), order)


def masks_at(sorted_order: Positions, sparsity: float | Array) -> Masks:
  """Makes the masks that `ranking.masks_at` makes, by comparison alone."""
  marks = marks_at(sorted_order, sparsity)
  return ranking.masks_of(sorted_order.order, marks)


def marks_at(sorted_order: Positions, sparsity: float | Array) -> jax.Array:
  """Marks the groups that a sparsity keeps: bool, the shape of the table."""
  order = sorted_order.order
  kept = ranking.kept_groups(order, sparsity)
  _, sizes = _pools(order)
  rows = np.array(order.pools.rows)
  if order.pools.kind == "arrays":
    kept = jnp.take(kept, np.repeat(np.arange(len(rows)), rows))
  return sorted_order.places >= (sizes - kept)[:, None]


def _pools(order: ranking.Ranking) -> tuple[np.ndarray, np.ndarray]:
  """Where the pool of each entry starts, and the size of each row's pool."""
  rows = np.array(order.pools.rows)
  if order.pools.kind == "one":
    lengths = rows.sum(keepdims=True)
  else:
    lengths = rows if order.pools.kind == "arrays" else np.ones(rows.sum(), int)
  sizes = lengths * order.pools.width
  starts = np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.int32)
  return starts, np.repeat(sizes, lengths).astype(np.int32)
