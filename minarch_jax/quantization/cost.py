"""What a network costs: parameters, bytes, multiply-accumulates."""

from collections.abc import Mapping
import math

import jax
import numpy as np

from minarch_jax.architectures import Spec
from minarch_jax.quantization import storage, trees
from minarch_jax.types import Params

Count = storage.Count


def macs(spec: Spec, counts: Mapping[str, Count] | None = None) -> Count:
  """Counts the multiply-accumulates of one image when zeros are skipped.

  A kernel entry that is not zero costs one for every position it is applied
  at; attention's products of scores and values have no weights and always
  count. Biases, normalisation, activation and softmax do not.

  Args:
    spec: the network, `architecture.spec(input_shape, num_classes)`.
    counts: non-zeros by leaf name, of kernels at least (None = all: the dense
      network's MACs, `spec.macs`); numbers, or arrays of one per network.

  Raises:
    ValueError: a kernel without a count.
  """
  total = spec.macs
  if counts is None:
    return total
  for leaf in spec.leaves:
    if leaf.is_kernel:
      name = "/".join(leaf.path)
      if name not in counts:
        raise ValueError(
          f"counts lack leaf {name!r}; they have {', '.join(counts)} "
          "(see storage.count_nonzeros)"
        )
      zeros = math.prod(spec.shape(leaf)) - counts[name]
      total = total - zeros * leaf.positions
  return total


def cost(
  spec: Spec,
  params: Params,
  bits: trees.TreeBits = 32,
  granularity: str = "channel",
) -> dict[str, int]:
  """Sums up what one network costs as it is, zeros left out.

  >>> sparse = ma.apply_masks(params, ma.prune(params, 0.5))
  >>> ma.cost(spec, sparse, bits=8)
  {'params': 123, 'nonzeros': 57, 'macs': 57, 'bytes': 144}

  Args:
    spec: of the network, `architecture.spec(input_shape, num_classes)`.
    params: its parameters.
    bits, granularity: how it would be stored, as for `quantize`.

  Returns:
    params (their number), nonzeros, macs (of one image), bytes.
  """
  found = jax.device_get(storage.count_nonzeros(params, lambda path: True))
  counts = {name: int(count) for name, count in found.items()}
  return {
    "params": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
    "nonzeros": sum(counts.values()),
    "macs": macs(spec, counts),
    "bytes": storage.storage_bytes(params, bits, granularity, nonzeros=counts),
  }
