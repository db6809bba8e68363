"""Pruning and quantization together: chained, in either order, compared."""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import architectures, registries, types
from minarch_jax.quantization import cost, formats, storage, trees

# A tree of parameters -> masks of its structure, 1 = kept; for example
# lambda p: pruning.prune(p, 0.6).
Prune = Callable[[types.Params], types.Masks]
Joint = Callable[[types.Params, Prune, types.Transform], types.Params]


def chain(*transforms: types.Transform) -> types.Transform:
  """Makes one transform that applies the given ones from left to right.

  >>> prune = lambda p: ma.apply_masks(p, ma.prune(p, 0.6))
  >>> quantize = lambda p: ma.fake_quantize(p, 4)
  >>> smaller = ma.chain(prune, quantize)(params)

  `chain()` is the identity, and chaining is associative. The result maps over
  seeds with `jax.vmap` when its parts do.

  Raises:
    ValueError: an argument is not a function.
  """
  for transform in transforms:
    if not callable(transform):
      raise ValueError(
        f"chain takes functions from params to params, not {transform!r}; "
        "bind other arguments first, for example with functools.partial"
      )

  def chained(params: types.Params) -> types.Params:
    for transform in transforms:
      params = transform(params)
    return params

  return chained


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


# --- the surface of sparsity and bits ----------------------------------------


class Point(NamedTuple):
  """One cell of the surface: what was done, what it costs, what is left.

  Attributes:
    order: a key of ORDERS.
    sparsity: fraction of the weights removed.
    bits: width or format of the weights.
    bytes: of the stored model, as `save_model` writes it.
    macs: multiply-accumulates left when zeros are skipped; None without spec.
    value: what `evaluate` returned, higher is better.
  """

  order: str
  sparsity: float
  bits: formats.Bits
  bytes: int
  macs: int | None
  value: float


def joint_surface(
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

  >>> points = ma.joint_surface(
  ...   params, ma.prune, (0.0, 0.5), (32, 4), lambda p: -loss(p, batch))
  >>> front = ma.pareto_front(points)
  >>> len(points), front[-1].bytes >= front[0].bytes
  (8, True)

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
    registries.find("order", order, ORDERS)
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


def pareto_front(points: Sequence[Point], axis: str = "bytes") -> list[Point]:
  """Returns the Pareto front: no other point is cheaper and as good.

  Args:
    points: from `joint_surface`, of one network or averaged over seeds.
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
