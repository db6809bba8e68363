"""Chains of transforms, and pruning and quantization in either order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, pruning, quantization
from minarch_jax.architectures import Problem
from minarch_jax.quantization.networks import joint

PARAMS = {"kernel": np.arange(6, dtype=np.float32)}


def double(params):
  return jax.tree.map(lambda leaf: leaf * 2, params)


def plus_one(params):
  return jax.tree.map(lambda leaf: leaf + 1, params)


def test_an_empty_chain_is_the_identity():
  assert joint.chain()(PARAMS) is PARAMS


def test_transforms_apply_from_left_to_right():
  out = joint.chain(double, plus_one)(PARAMS)
  np.testing.assert_array_equal(out["kernel"], PARAMS["kernel"] * 2 + 1)


def test_chaining_is_associative():
  left = joint.chain(joint.chain(double, plus_one), double)
  right = joint.chain(double, joint.chain(plus_one, double))
  np.testing.assert_array_equal(left(PARAMS)["kernel"], right(PARAMS)["kernel"])


def test_a_chain_maps_over_seeds():
  def half(params):
    return pruning.apply_masks(params, pruning.prune(params, 0.5))

  chained = joint.chain(half, double)
  stacked = {"kernel": np.stack([PARAMS["kernel"], -PARAMS["kernel"][::-1]])}
  out = jax.jit(jax.vmap(chained))(stacked)["kernel"]
  np.testing.assert_array_equal(out[0], [0, 0, 0, 6, 8, 10])
  np.testing.assert_array_equal(out[1], [-10, -8, -6, 0, 0, 0])


def test_what_is_no_function_is_named():
  with pytest.raises(ValueError, match="not 0.5; bind"):
    joint.chain(double, 0.5)


# --- pruning and quantization ------------------------------------------------


def network():
  """dnn:6-5 on images of 2 x 2."""
  rng = np.random.default_rng(0)
  return {
    name: {
      "kernel": rng.normal(size=shape).astype(np.float32),
      "bias": np.zeros(shape[1], np.float32),
    }
    for name, shape in (
      ("hidden_0", (4, 6)),
      ("hidden_1", (6, 5)),
      ("output", (5, 3)),
    )
  }


@pytest.mark.parametrize("order", joint.ORDERS)
def test_joint_orders(order):
  """Both remove the same share and leave 4-bit numbers."""
  params = network()
  rounds = functools.partial(quantization.fake_quantize, bits=4)
  prune = functools.partial(pruning.prune, sparsity=0.6)
  both = joint.ORDERS[order](params, prune, rounds)
  kernels = [leaf for leaf in jax.tree.leaves(both) if leaf.ndim == 2]
  zeros = sum(np.sum(np.asarray(kernel) == 0) for kernel in kernels)
  assert zeros >= round(0.6 * sum(kernel.size for kernel in kernels))
  for kernel in kernels:
    levels = [len(np.unique(channel)) for channel in np.asarray(kernel).T]
    assert max(levels) <= 15
  with pytest.raises(ValueError, match="masks have the structure"):
    joint.ORDERS[order](params, lambda p: {"a": 1}, rounds)


def test_the_order_matters():
  """A pruned largest weight narrows the range only if pruned first."""
  params = {"kernel": jnp.array([[8.0], [1.0], [0.4]])}
  rounds = functools.partial(quantization.fake_quantize, bits=2)

  def prune(params):  # the largest goes
    kernel = params["kernel"]
    return {"kernel": kernel < kernel.max()}

  first = joint.prune_first(params, prune, rounds)["kernel"]
  last = joint.quantize_first(params, prune, rounds)["kernel"]
  np.testing.assert_allclose(first, [[0], [1], [0]])
  np.testing.assert_allclose(last, [[0], [0], [0]])


def test_the_surface_has_a_front_and_equal_bytes():
  """Neutral cells are the network; the front rises; MACs follow the zeros."""
  architecture = architectures.Architecture.parse("dnn:6-5")
  spec, params = architecture.spec(Problem((2, 2, 1), 3)), network()

  def evaluate(tree):  # minus the squared distance to the network
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    return -sum(float(np.sum((np.asarray(a) - b) ** 2)) for a, b in pairs)

  points = joint.joint_surface(
    *(params, pruning.prune, (0.0, 0.5), (32, 8, 2), evaluate), spec=spec
  )
  assert len(points) == 2 * 2 * 3
  whole = [p for p in points if p.sparsity == 0 and p.bits == 32]
  assert all(p.value == 0 and p.macs == spec.macs for p in whole)
  for order in joint.ORDERS:
    sizes = {(p.sparsity, p.bits): p.bytes for p in points if p.order == order}
    assert sizes[0.5, 8] < sizes[0.0, 8] < sizes[0.0, 32]
  front = joint.pareto_front(points)
  assert all(a.bytes < b.bytes for a, b in zip(front, front[1:], strict=False))
  assert all(a.value < b.value for a, b in zip(front, front[1:], strict=False))
  for point in points:
    assert any(f.bytes <= point.bytes and f.value >= point.value for f in front)
  assert joint.pareto_front(points, "macs")[0].macs <= spec.macs / 2
  value = {(p.order, p.sparsity, p.bits): p.value for p in points}
  for cell in ((0.5, 32), (0.0, 2)):
    assert value["prune_first", *cell] == value["quantize_first", *cell]
  assert value["prune_first", 0.5, 2] != value["quantize_first", 0.5, 2]
  with pytest.raises(ValueError, match="measured with spec="):
    joint.pareto_front([points[0]._replace(macs=None)], "macs")
  with pytest.raises(ValueError, match="order 'first' is not one of"):
    joint.joint_surface(
      params, pruning.prune, (), (), evaluate, orders=("first",)
    )
