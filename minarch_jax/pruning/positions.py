"""Places of all groups in the order of removal, for grids of many sparsities.

One sort per ranking; afterwards the masks of any sparsity are one comparison
per leaf, where bisection would search again every time.
"""

from collections.abc import Sequence

import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from minarch_jax.pruning import ranking
from minarch_jax.types import Array, Masks


@flax.struct.dataclass
class Cuts:
  """A ranking cut at several sparsities.

  Rankings of one granularity give cuts of one structure, whatever their
  criterion and scope, so one compiled program makes the masks of them all.

  Attributes:
    places: int32 table of the ranking, 0 = the first of its pool to go.
    first: int32 [K, layers], the place from which on a layer's groups are
      kept, for each sparsity; [K, rows] of an N:M granularity.
    order: the ranking as if its scope were layer-wise.
  """

  places: jax.Array
  first: jax.Array
  order: ranking.Ranking


def cuts(order: ranking.Ranking, sparsities: Sequence[float] | Array) -> Cuts:
  """Sorts a ranking's groups once and cuts them at K sparsities.

  Groups that do not exist go first, then by score; among equal scores the
  first in row-major order.
  """
  starts, sizes = _pools(order)
  here = lax.iota(jnp.int32, order.keys.size)
  flat = (jnp.asarray(starts), order.keys.reshape(-1), here)
  _, _, moved = lax.sort(flat, num_keys=2, is_stable=True)
  places = jnp.zeros_like(here).at[moved].set(here, unique_indices=True)

  def first(sparsity):
    return jnp.asarray(sizes) - ranking.kept_groups(order, sparsity)

  return Cuts(
    (places - starts).reshape(order.keys.shape),
    jax.vmap(first)(jnp.asarray(sparsities, jnp.float32)).astype(jnp.int32),
    ranking.layerwise(order),
  )


def masks_at(cut: Cuts, index: int | Array) -> Masks:
  """Makes the masks that `ranking.masks_at` makes at sparsity number `index`.

  By comparison alone; `index` may be traced.
  """
  return ranking.masks_of(cut.order, marks_at(cut, index))


def marks_at(cut: Cuts, index: int | Array) -> jax.Array:
  """Marks the groups kept at a sparsity: bool, the shape of the table."""
  pools, first = cut.order.pools, cut.first[index]
  if pools.kind == "arrays":
    first = jnp.take(first, np.repeat(np.arange(len(first)), pools.rows))
  return cut.places >= first[:, None]


def _pools(order: ranking.Ranking) -> tuple[np.ndarray, np.ndarray]:
  """Where the pool of each entry starts, and the size of each layer's pool.

  Rows of an N:M granularity are pools of their own.
  """
  pools = order.pools
  rows, width = np.array(pools.rows), pools.width
  if pools.kind == "rows":
    rows = np.ones(rows.sum(), int)
  lengths = rows.sum(keepdims=True) if pools.kind == "one" else rows
  sizes = lengths * width
  starts = np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.int32)
  return starts, np.broadcast_to(sizes, len(rows)).astype(np.int32)
