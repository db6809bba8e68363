"""Bytes of a stored model, by formula, equal to the file that `save` writes.

What counts is the payload: packed codes, float32 scales, int8 zero points, and
the leaves that stay float32. The file's header (names, shapes, formats; a
description of the architecture) is the rest of the file and does not count.

A weight array of n codes of b bits, of which k are not 0, is stored
  dense   as ceil(n b / 8) bytes, or
  bitmap  as ceil(n / 8) + ceil(k b / 8) bytes: which are 0, then the others,
whichever is smaller. Binary codes have no 0, so a single 0 calls for a bitmap.
Counts and bits may be numbers, or arrays with one number per network.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves as leaves_lib
from minarch_jax import registries, types
from minarch_jax.quantization import formats, layouts, packing, trees
from minarch_jax.quantization import rounding as roundings_lib

Count = Any  # an int, or an integer array
Leaf = tuple[leaves_lib.Path, tuple[int, ...]]  # path and shape


def uses_bitmap(
  size: int, nonzeros: Count, bits: Count, packs_zero: bool
) -> Any:
  """Decides how an array is stored; dense where both take the same bytes.

  Args:
    size: number of codes.
    nonzeros: how many are not 0.
    bits: of each.
    packs_zero: whether there is a code for 0 (see formats.Format).
  """
  dense = packing.num_bytes(size, bits)
  sparse = packing.num_bytes(size, 1) + packing.num_bytes(nonzeros, bits)
  return (nonzeros != size) & ((sparse < dense) | (not packs_zero))


def weight_bytes(
  leaf: Leaf,
  format: formats.Format,
  granularity: str = "channel",
  nonzeros: Count | None = None,
  bits: Count | None = None,
  axes: leaves_lib.Axes | leaves_lib.Readings | None = None,
) -> Count:
  """Counts the bytes of one weight: codes, bitmap, scales and zero points.

  Args:
    leaf: its path and shape.
    format: of its codes.
    granularity: what shares a scale (4 bytes) and a zero point (1 byte).
    nonzeros: codes that are not 0; None = all.
    bits: of each code where not the format's, 32 = as trained, without scale.
    axes: as for `layouts.make_layout`.

  Raises:
    ValueError: as `layouts.make_layout`.
  """
  path, shape = leaf
  size = math.prod(shape)
  layout = layouts.make_layout(granularity, path, shape, axes)
  nonzeros = size if nonzeros is None else nonzeros
  bits = format.bits if bits is None else bits
  codes = np.where(
    uses_bitmap(size, nonzeros, bits, format.packs_zero),
    packing.num_bytes(size, 1) + packing.num_bytes(nonzeros, bits),
    packing.num_bytes(size, bits),
  )
  if not format.scaled:
    return codes
  scales = math.prod(layouts.scale_shape(layout, shape))
  each = 4 if format.symmetric else 5
  return codes + np.where(np.asarray(bits) < 32, each * scales, 0)


def count_nonzeros(
  params: types.Params, choose: trees.Choose | None = None
) -> dict[str, jax.Array]:
  """Counts the entries other than 0 of each weight leaf, int32 scalars."""
  choose = choose or leaves_lib.weights(params).__contains__
  return {
    "/".join(path): jnp.count_nonzero(leaf)
    for path, leaf in leaves_lib.named(params)
    if choose(path)
  }


def storage_bytes(
  params: types.Params,
  bits: trees.TreeBits,
  granularity: str = "channel",
  *,
  nonzeros: Mapping[str, Count] | None = None,
  choose: trees.Choose | None = None,
  axes: leaves_lib.Rules | None = None,
) -> Any:
  """Counts the bytes of a model once quantized, from shapes alone.

  >>> ma.storage_bytes(params, 32), ma.storage_bytes(params, 4)
  (492, 129)

  Args:
    params: arrays or shapes (`jax.ShapeDtypeStruct`) of one network.
    bits: as for `quantize`, not traced.
    granularity: as for `quantize`.
    nonzeros: entries other than 0 of each weight leaf, as `count_nonzeros`
      gives them for the *dequantized* tree (rounding makes zeros too); None =
      all, that is dense storage. Arrays hold one number per network.
    choose: which paths are weights.
    axes: as for `quantize`.

  Returns:
    Bytes: codes, scales, zero points and float32 leaves; an int, or an array
    of the shape of the counts.

  Raises:
    ValueError: as for `quantize`.
  """
  by_leaf = trees.bits_by_leaf(params, bits, choose)
  named, total = leaves_lib.named(params), 0
  described = leaves_lib.axes_of(named, axes)
  for path, leaf in named:
    name = "/".join(path)
    if name not in by_leaf:
      total = total + _plain_bytes(leaf)
      continue
    format = formats.FORMATS[by_leaf[name]]
    if by_leaf[name] == "float32":
      format = formats.as_trained(leaf) or format
    count = None if nonzeros is None else np.asarray(nonzeros[name])
    total = total + weight_bytes(
      (path, leaf.shape), format, granularity, count, axes=described[path]
    )
  return total if np.ndim(total) else int(total)


def _plain_bytes(leaf: Any) -> int:
  """What a leaf takes as it is; nothing where it holds no numbers."""
  if not leaves_lib.is_array(leaf):
    return 0
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def grid_bytes(
  leaves: Iterable[Leaf],
  nonzeros: np.ndarray,
  bits: np.ndarray,
  roundings: Sequence[roundings_lib.Rounding],
) -> np.ndarray:
  """Counts `storage_bytes` of networks in the cells of a grid, all at once.

  Args:
    leaves: of the network.
    nonzeros: int [..., cells, leaves].
    bits: int [cells].
    roundings: that of each cell.

  Returns:
    int64 [..., cells].
  """
  leaves = list(leaves)
  axes = leaves_lib.axes_of(leaves)
  total = np.zeros(nonzeros.shape[:-1], np.int64)
  alike = {
    each: np.array([other == each for other in roundings])
    for each in dict.fromkeys(roundings)
  }
  for i, leaf in enumerate(leaves):
    if not registries.is_weight(leaf[0]):
      total += 4 * math.prod(leaf[1])
      continue
    for rounding, cells in alike.items():
      total[..., cells] += weight_bytes(
        leaf,
        roundings_lib.format_of(rounding),
        rounding.granularity,
        nonzeros[..., cells, i],
        bits[cells],
        axes[leaf[0]],
      )
  return total
