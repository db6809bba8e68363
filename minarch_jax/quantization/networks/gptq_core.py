"""GPTQ's mathematics: second-order rounding of one matrix.

Rounding W to Q changes a layer's outputs X W by X (W - Q). Rows of W (inputs)
are rounded one after another, and the error of each is made up for by the rows
not yet rounded, as the Hessian H = X^T X of the squared output error says
(Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3; the Cholesky form of
its section 3.3).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# (row number, weights [N]) -> the numbers those weights are rounded to.
RoundRow = Callable[[jax.Array, jax.Array], jax.Array]


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

  def step(i, state):
    w, result = state
    row = w[i]
    error = (row - round_row(i, row)) / upper[i, i]
    later = jnp.where(jnp.arange(w.shape[0]) > i, upper[i], 0.0)
    return w - later[:, None] * error[None], result.at[i].set(row)

  return jax.lax.fori_loop(0, w.shape[0], step, (w, w))[1]
