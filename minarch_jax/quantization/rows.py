"""What shares a scale, as rows of entries of a network's vector.

A scale is that of its row, whatever network and leaf the row is of: one program
rounds the rows of them all.
"""

from collections.abc import Callable
import functools

import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves, registries
from minarch_jax.architectures import Architecture, Problem, vectors
from minarch_jax.quantization import layouts
from minarch_jax.quantization.rounding import make_rounder, Rounding

LEAF = "kernel"  # whose last axis are outputs (see `leaves`)


@functools.lru_cache(maxsize=4096)
def rows_of(
  architecture: Architecture, problem: Problem, granularity: str
) -> list[np.ndarray]:
  """Lists the entries of every row, by the length of rows.

  Args:
    architecture, problem: the network, not a parent.
    granularity: as of `quantize`.

  Returns:
    For each length int [rows, length]: numbers of entries, N after the last of
    a row.
  """
  vector = vectors.vector_of(architecture, problem)
  described = leaves.axes_of(list(vector.shapes.items()))
  numbers = np.arange(1, vector.size + 1)
  found: dict[int, list[np.ndarray]] = {}
  for path, own in vector.slices.items():
    if not registries.is_weight(path):
      continue
    shape = vector.shapes[path]
    layout = layouts.make_layout(granularity, path, shape, described[path])
    blocks = layouts.to_blocks(numbers[own].reshape(shape), layout)
    rows = np.moveaxis(blocks, 1, -1).reshape(-1, blocks.shape[1]) - 1
    rows = np.where(rows < 0, vector.size, rows)
    found.setdefault(rows.shape[1], []).append(rows)
  return [np.concatenate(rows) for rows in found.values()]


def make_round(rounding: Rounding) -> Callable:
  """Makes `round(table, lengths, bits) -> table`.

  Args:
    rounding: of rows, whatever its granularity.

  Returns:
    A function of a float32 [rows, length] table, the number of entries of each
    row, and bits as of `make_rounder`.
  """
  rounder = make_rounder([rounding._replace(granularity="channel")])

  def round(table, lengths, bits):
    within = jnp.arange(table.shape[1])[:, None] < lengths[None]
    return rounder({LEAF: table.T}, 0, bits, {LEAF: within})[LEAF].T

  return round
