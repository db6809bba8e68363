"""Bytes of a stored model, by formula, equal to the file that `save` writes.

What counts is the payload: packed codes, float32 scales, int8 zero points, and
the leaves that stay float32. The file's header (names, shapes, formats; a
description of the architecture) is the rest of the file and does not count.

A weight array of n codes of b bits, of which k are not 0, is stored
  dense   as ceil(n b / 8) bytes, or
  bitmap  as ceil(n / 8) + ceil(k b / 8) bytes: which are 0, then the others,
whichever is smaller. Binary codes have no 0, so a single 0 calls for a bitmap.
"""

from collections.abc import Mapping, Sequence
import math

import jax
import jax.numpy as jnp

from minarch_jax import types
from minarch_jax.quantization import formats, layouts, packing, trees


def uses_bitmap(size: int, nonzeros: int, format: formats.Format) -> bool:
  """Decides how an array is stored; dense where both take the same bytes."""
  if nonzeros == size:
    return False
  dense = packing.num_bytes(size, format.bits)
  sparse = packing.num_bytes(size, 1) + packing.num_bytes(nonzeros, format.bits)
  return sparse < dense or not format.packs_zero


def codes_bytes(size: int, nonzeros: int, format: formats.Format) -> int:
  """Counts the bytes of an array's codes, with their bitmap if there is one."""
  if uses_bitmap(size, nonzeros, format):
    return packing.num_bytes(size, 1) + packing.num_bytes(nonzeros, format.bits)
  return packing.num_bytes(size, format.bits)


def scale_bytes(
  shape: Sequence[int], layout: layouts.Layout, format: formats.Format
) -> int:
  """Counts the bytes of scales (4 each) and zero points (1 each)."""
  if not format.scaled:
    return 0
  count = math.prod(layouts.scale_shape(layout, shape))
  return count * (4 if format.symmetric else 5)


def count_nonzeros(
  params: types.Params, choose: trees.Choose = trees.is_weight
) -> dict[str, jax.Array]:
  """Counts the entries other than 0 of each weight leaf, int32 scalars."""
  return {
    "/".join(path): jnp.count_nonzero(leaf)
    for path, leaf in trees.paths_and_leaves(params)
    if choose(path)
  }


def storage_bytes(
  params: types.Params,
  bits: trees.TreeBits,
  granularity: str = "channel",
  *,
  nonzeros: Mapping[str, int] | None = None,
  choose: trees.Choose = trees.is_weight,
) -> int:
  """Counts the bytes of a model once quantized, from shapes alone.

  Args:
    params: arrays or shapes (`jax.ShapeDtypeStruct`) of one network.
    bits: as for `quantize`, not traced.
    granularity: as for `quantize`.
    nonzeros: entries other than 0 of each weight leaf, as `count_nonzeros`
      gives them for the *dequantized* tree (rounding makes zeros too); None =
      all, that is dense storage.
    choose: which paths are weights.

  Returns:
    Bytes: codes, scales, zero points and float32 leaves.

  Raises:
    ValueError: as for `quantize`.
  """
  by_leaf = trees.bits_by_leaf(params, bits, choose)
  total = 0
  for name, leaf in trees.leaves_with_names(params):
    size = math.prod(leaf.shape)
    if name not in by_leaf:
      total += 4 * size
      continue
    format = formats.FORMATS[by_leaf[name]]
    layout = layouts.make_layout(granularity, name.split("/"), leaf.shape)
    count = size if nonzeros is None else int(nonzeros[name])
    total += codes_bytes(size, count, format)
    total += scale_bytes(leaf.shape, layout, format)
  return total
