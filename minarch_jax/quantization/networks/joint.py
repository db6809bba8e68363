"""Pruning and quantization together: order, surface, front, do damages add."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import architectures, cost, types
from minarch_jax.quantization import formats, storage, trees

# A tree of parameters -> masks of its structure, 1 = kept; for example
# lambda p: pruning.prune(p, 0.6).
Prune = Callable[[types.Params], types.Masks]
Joint = Callable[[types.Params, Prune, types.Transform], types.Params]


def _masked(params: types.Params, masks: types.Masks) -> types.Params:
  if jax.tree.structure(params) != jax.tree.structure(masks):
    raise ValueError(
      f"masks have the structure {jax.tree.structure(masks)}, the parameters "
      f"have {jax.tree.structure(params)}; prune the tree that is quantized"
    )
  return jax.tree.map(
    lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, masks
  )


def prune_first(
  params: types.Params, prune: Prune, rounds: types.Transform
) -> types.Params:
  """Prunes the trained weights, then spreads the codes over what is left.

  A pruned largest weight narrows its channel's range.
  """
  return rounds(_masked(params, prune(params)))


def quantize_first(
  params: types.Params, prune: Prune, rounds: types.Transform
) -> types.Params:
  """Rounds the trained weights, then prunes the rounded ones.

  The criterion sees codes: equal codes tie, and scales are of the dense
  network.
  """
  rounded = rounds(params)
  return _masked(rounded, prune(rounded))


ORDERS: dict[str, Joint] = {
  "prune_first": prune_first,
  "quantize_first": quantize_first,
}


def interaction(
  dense: types.Array,
  pruned: types.Array,
  quantized: types.Array,
  both: types.Array,
) -> types.Array:
  """Returns how far the joint damage exceeds the sum of the two.

  Damage is accuracy lost against `dense`. 0: damages add; positive: together
  they hurt more than their sum. Elementwise, so paired by seed.

  Args:
    dense: accuracies of the trained networks.
    pruned: of the same after pruning alone.
    quantized: after quantization alone.
    both: after both.
  """
  return (dense - both) - (dense - pruned) - (dense - quantized)


# --- the surface of sparsity and bits ----------------------------------------


class Point(NamedTuple):
  """One cell of the surface: what was done, what it costs, what is left.

  Attributes:
    order: a key of ORDERS.
    sparsity: fraction of the weights removed.
    bits: width or format of the weights.
    bytes: of the stored model, as `save` writes it.
    macs: multiply-accumulates left when zeros are skipped; None without spec.
    value: what `evaluate` returned, higher is better.
  """

  order: str
  sparsity: float
  bits: formats.Bits
  bytes: int
  macs: int | None
  value: float


def surface(
  params: types.Params,
  prune: Callable[[types.Params, float], types.Masks],
  sparsities: Sequence[float],
  bits: Sequence[formats.Bits],
  evaluate: Callable[[types.Params], float],
  granularity: str = "channel",
  *,
  orders: Sequence[str] = tuple(ORDERS),
  spec: architectures.Spec | None = None,
) -> list[Point]:
  """Measures every sparsity at every width, in every order.

  Args:
    params: one network.
    prune: `prune(params, sparsity) -> masks`, for example `ma.prune`.
    sparsities, bits: the axes of the surface; 0 and 32 are its neutral ends.
    evaluate: accuracy, or another value of which more is better.
    granularity: as for `quantize`.
    orders: keys of ORDERS.
    spec: of the network, to count MACs.

  Raises:
    ValueError: an unknown order; otherwise as `prune` and `quantize`.
  """
  for order in orders:
    if order not in ORDERS:
      raise ValueError(f"order {order!r} is not one of {', '.join(ORDERS)}")
  points = []
  for order in orders:
    for sparsity in sparsities:

      def cut(tree, sparsity=sparsity):
        return prune(tree, sparsity)

      for width in bits:
        rounds = functools.partial(
          trees.fake_quantize, bits=width, granularity=granularity
        )
        tree = ORDERS[order](params, cut, rounds)
        counts = {
          name: int(count)
          for name, count in storage.count_nonzeros(tree).items()
        }
        size = storage.storage_bytes(
          params, width, granularity, nonzeros=counts
        )
        macs = None if spec is None else cost.macs(spec, counts)
        value = float(evaluate(tree))
        points.append(Point(order, sparsity, width, size, macs, value))
  return points


def front(points: Sequence[Point], axis: str = "bytes") -> list[Point]:
  """Returns the Pareto front: no other point is cheaper and as good.

  Args:
    points: from `surface`, of one network or with values averaged over seeds.
    axis: "bytes" or "macs".

  Returns:
    Points by rising cost, each better than all cheaper ones.

  Raises:
    ValueError: an unknown axis, or one that was not counted.
  """
  if axis not in ("bytes", "macs") or any(
    getattr(point, axis) is None for point in points
  ):
    raise ValueError(
      f"no {axis!r} to compare points by; use bytes, or macs of a surface "
      "measured with spec="
    )
  best, found = -np.inf, []
  for point in sorted(points, key=lambda p: (getattr(p, axis), -p.value)):
    if point.value > best:
      best = point.value
      found.append(point)
  return found


def at_most(points: Sequence[Point], budget: int) -> Point:
  """Returns the best point of at most `budget` bytes: equal bytes compared.

  Raises:
    ValueError: none is that small.
  """
  small = [point for point in points if point.bytes <= budget]
  if not small:
    least = min((point.bytes for point in points), default=None)
    raise ValueError(
      f"no point fits a budget of {budget} bytes; the smallest has {least}"
    )
  return max(small, key=lambda point: point.value)


def order_effects(
  points: Sequence[Point],
) -> dict[tuple[float, formats.Bits], float]:
  """Returns value of `prune_first` less that of `quantize_first`, by cell."""
  value = {(p.order, p.sparsity, p.bits): p.value for p in points}
  return {
    (p.sparsity, p.bits): p.value - value["quantize_first", p.sparsity, p.bits]
    for p in points
    if p.order == "prune_first"
    and ("quantize_first", p.sparsity, p.bits) in value
  }
