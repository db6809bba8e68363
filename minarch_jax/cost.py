"""What a network costs: parameters, bytes by storage format, MACs.

Counts go in, so a table of thousands of compressed networks costs no more than
their numbers of non-zeros. They may be Python numbers, numpy or traced arrays
of any shape; bytes and MACs come out in that shape.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax.architectures import Spec
from minarch_jax.types import Masks, Params

Count = Any  # an int, or an integer array of one number per network
Name = str  # a leaf: "hidden_0/kernel"

FULL_BITS = 32  # biases, norms and scales stay as trained
_WEIGHTS = ("kernel", "embedding")


def nonzeros(params: Params, masks: Masks | None = None) -> dict[Name, Any]:
  """Counts the entries of each leaf that are not zero: int32 scalars.

  Args:
    params: one network; map over seeds with `jax.vmap`.
    masks: counts what would be left under them (None = params as they are).
  """
  if masks is not None:
    params = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
  return {
    name: jnp.count_nonzero(leaf).astype(jnp.int32)
    for name, leaf in _named(params)
  }


def num_params(params: Params) -> int:
  """Counts the parameters of one network, zeros included."""
  return sum(math.prod(np.shape(leaf)) for _, leaf in _named(params))


def _named(tree: Params) -> list[tuple[Name, Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
    for path, leaf in leaves
  ]


# --- bytes -------------------------------------------------------------------

Matrix = tuple[int, int]  # a kernel as (inputs, outputs)


def _dense(shape: Matrix, count: Count, bits: int) -> Count:
  """n b: every value."""
  return math.prod(shape) * bits + 0 * count


def _bitmap(shape: Matrix, count: Count, bits: int) -> Count:
  """n + k b: one bit for each place, then the values that are not zero."""
  return math.prod(shape) + count * bits


def _csr(shape: Matrix, count: Count, bits: int) -> Count:
  """k (b + ceil(log2 columns)) + (rows + 1) ceil(log2(n + 1)).

  Compressed sparse rows: a value and its column for each non-zero, and where
  each row starts; indices as narrow as they can be.
  """
  rows, columns = shape
  starts = (rows + 1) * math.ceil(math.log2(rows * columns + 1))
  return count * (bits + math.ceil(math.log2(max(columns, 1)))) + starts


def _entropy(shape: Matrix, count: Count, bits: int) -> Count:
  """n H(k / n) + k b with H the binary entropy in bits.

  No code for the places of k non-zeros among n is shorter on average; values
  are not compressed, so at few bits a dense array, whose zeros are codes like
  any other, may take less.
  """
  size = max(math.prod(shape), 1)
  module = jnp if isinstance(count, jax.Array) else np
  kept = count / size
  # 0 log 0 = 0; the argument is kept positive for the branch not taken.
  surprise = [
    -p * module.log2(module.where(p > 0, p, 1.0)) for p in (kept, 1 - kept)
  ]
  return size * sum(surprise) + count * bits


FORMATS: dict[str, Callable[[Matrix, Count, int], Count]] = {
  "dense": _dense,
  "bitmap": _bitmap,
  "csr": _csr,
  "entropy": _entropy,
}


def leaf_bytes(
  shape: Sequence[int],
  count: Count,
  bits: int,
  storage: str,
  outputs: int = 1,
) -> Count:
  """Returns the bytes of one leaf, rounded up to whole bytes.

  Args:
    shape: of the leaf; its last `outputs` axes are the columns of a matrix.
    count: entries that are not zero.
    bits: of each value.
    storage: a key of FORMATS; each states its formula.
    outputs: number of output axes.

  Raises:
    ValueError: an unknown storage format, or bits below 1.
  """
  if storage not in FORMATS:
    near = difflib.get_close_matches(storage, FORMATS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"storage {storage!r} is not one of {', '.join(FORMATS)}{hint}"
    )
  if bits < 1:
    raise ValueError(f"bits {bits} is below 1; 32 = as trained")
  split = len(shape) - outputs
  matrix = (math.prod(shape[:split]), math.prod(shape[split:]))
  total = FORMATS[storage](matrix, count, bits)
  if storage == "entropy":
    module = jnp if isinstance(total, jax.Array) else np
    # float32 may miss a whole number by one unit in the last place.
    return module.ceil(total / 8 - 1e-6).astype(np.int32)
  return (total + 7) // 8


def model_bytes(
  spec: Spec,
  counts: Mapping[Name, Count] | None = None,
  *,
  bits: int = FULL_BITS,
  storage: str = "dense",
) -> Count:
  """Returns the bytes of a whole network.

  Kernels and embeddings have `bits` and the given storage; biases, norms and
  scales are dense at 32 bits. Quantization scales, where there are any, are
  counted by `quantization.storage_bytes`.

  Args:
    spec: shapes of the network, `architecture.spec(input_shape, num_classes)`.
    counts: non-zeros by leaf name, of weights at least (None = all).
    bits: of each weight.
    storage: a key of FORMATS.

  Raises:
    ValueError: as `leaf_bytes`, or a weight leaf without a count.
  """
  total = 0
  for leaf in spec.leaves:
    shape = spec.shape(leaf)
    if leaf.path[-1] not in _WEIGHTS:
      total = total + 4 * math.prod(shape)
      continue
    count = _count(leaf, shape, counts)
    total = total + leaf_bytes(shape, count, bits, storage, leaf.outputs)
  return total


def _count(leaf, shape, counts) -> Count:
  if counts is None:
    return math.prod(shape)
  name = "/".join(leaf.path)
  if name not in counts:
    raise ValueError(
      f"counts lack leaf {name!r}; they have {', '.join(counts)} "
      "(see cost.nonzeros)"
    )
  return counts[name]


# --- multiply-accumulates ----------------------------------------------------


def macs(spec: Spec, counts: Mapping[Name, Count] | None = None) -> Count:
  """Counts the multiply-accumulates of one image when zeros are skipped.

  A kernel entry that is not zero costs one for every position it is applied
  at; attention's products of scores and values have no weights and always
  count. Biases, normalisation, activation and softmax do not.

  Args:
    spec: the network, `architecture.spec(input_shape, num_classes)`.
    counts: non-zeros by leaf name, of kernels at least (None = all: the dense
      network's MACs, `spec.macs`).

  Raises:
    ValueError: a kernel without a count.
  """
  total = spec.macs
  for leaf in spec.leaves:
    if leaf.is_kernel:
      shape = spec.shape(leaf)
      zeros = math.prod(shape) - _count(leaf, shape, counts)
      total = total - zeros * leaf.positions
  return total


def macs_skipped(spec: Spec, counts: Mapping[Name, Count]) -> Count:
  """Counts the multiply-accumulates that zeros save: dense less `macs`."""
  return spec.macs - macs(spec, counts)


def summary(
  spec: Spec, params: Params, *, bits: int = FULL_BITS
) -> dict[str, int]:
  """Sums up one network: params, nonzeros, macs, macs_skipped, bytes_*."""
  counts = {name: int(count) for name, count in nonzeros(params).items()}
  sizes = {
    f"bytes_{storage}": int(
      model_bytes(spec, counts, bits=bits, storage=storage)
    )
    for storage in FORMATS
  }
  return {
    "params": num_params(params),
    "nonzeros": sum(counts.values()),
    "macs": macs(spec, counts),
    "macs_skipped": macs_skipped(spec, counts),
    **sizes,
  }
