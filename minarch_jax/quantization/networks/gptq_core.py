"""GPTQ's mathematics: second-order rounding of one matrix.

Rounding W to Q changes a layer's outputs X W by X (W - Q). Rows of W (inputs)
are rounded one after another, and the error of each is made up for by the rows
not yet rounded, as the Hessian H = X^T X of the squared output error says
(Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3; the Cholesky form of
its section 3.3).
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp

# (row number, weights [N]) -> the numbers those weights are rounded to.
RoundRow = Callable[[jax.Array, jax.Array], jax.Array]


# Rows whose errors go to the rows of later blocks by one matrix product (the
# paper's section 3.3): all would move through the memory for every row.
_TOGETHER = 128


def compensation(
  hessian: jax.Array, damping: float, exists: jax.Array | None = None
) -> jax.Array:
  """Returns U, upper triangular, with U^T U the inverse of the damped H.

  Row i of U / U[i, i] says how far row i's error moves the later rows.

  Args:
    hessian: [K, K], X^T X up to a factor.
    damping: added to the diagonal, as a share of its mean (the paper: 0.01).
    exists: bool [K], inputs of the network itself where it lies inside a wider
      parent; the mean is over those. None = all.
  """
  diagonal = jnp.diagonal(hessian)
  mean = jnp.mean(diagonal)
  if exists is not None:
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(exists), 1)
  # An input that is always 0 says nothing of its weights; 1 keeps H regular.
  extra = damping * mean + (diagonal == 0)
  inverse = jnp.linalg.inv(hessian + jnp.diag(extra))
  return jnp.linalg.cholesky((inverse + inverse.T) / 2).T


def round_rows(
  w: jax.Array,
  hessian: jax.Array,
  round_row: RoundRow,
  damping: float,
  exists: jax.Array | None = None,
) -> jax.Array:
  """Rounds a matrix row by row, later rows making up for earlier errors.

  Args:
    w: float32 [K, N], inputs by outputs.
    hessian: float32 [K, K].
    round_row: rounding of one row.
    damping, exists: see `compensation`.

  Returns:
    float32 [K, N]: what each weight was when its turn came to be rounded, so
    that nearest rounding of the result is GPTQ's.
  """
  upper = compensation(hessian, damping, exists)
  count, size = len(w), min(_TOGETHER, len(w))
  margin = -count % size
  w = jnp.pad(w, ((0, margin), (0, 0)))
  upper = jnp.pad(upper, ((0, margin), (0, margin)))
  upper = upper + jnp.diag((jnp.arange(len(w)) >= count).astype(w.dtype))

  def one_block(block, w):
    start = block * size
    rows = lax.dynamic_slice_in_dim(w, start, size)
    own = lax.dynamic_slice_in_dim(upper, start, size)
    within = lax.dynamic_slice_in_dim(own, start, size, 1)

    def step(i, state):
      rows, errors = state
      row = rows[i]
      error = (row - round_row(start + i, row)) / within[i, i]
      later = jnp.where(jnp.arange(size) > i, within[i], 0.0)
      return rows - later[:, None] * error[None], errors.at[i].set(error)

    rows, errors = lax.fori_loop(0, size, step, (rows, jnp.zeros_like(rows)))
    w = lax.dynamic_update_slice_in_dim(w, rows, start, 0)
    if size == len(w):
      return w
    later = jnp.where(jnp.arange(len(w))[None] >= start + size, own, 0.0)
    return w - later.T @ errors

  return lax.fori_loop(0, len(w) // size, one_block, w)[:count]
