"""What the axes of leaves are: told by names, biases, neighbours, or said."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minarch_jax as ma
from minarch_jax import leaves
from tests.kinds import draw, module


def described(rules=None, **shapes):
  found = leaves.axes_of(
    [(tuple(name.split("/")), shape) for name, shape in shapes.items()], rules
  )
  return {"/".join(path): axes for path, axes in found.items()}


@pytest.mark.parametrize(
  "name, shape",
  [
    ("to_q/kernel", (8, 2, 4)),  # a query, or an output, or stacked layers
    ("mlp/kernel", (2, 8, 4, 4)),
    ("layer/weight", (3, 8, 4)),
    ("layer/table", (8, 4)),
  ],
)
def test_what_is_not_known_is_said_not_guessed(name, shape):
  layer, last = name.split("/")
  tree = {layer: {last: draw(*shape)}}
  names = {"names": [last]}
  message = f"leaf '{name}': say what its axes are, for example axes="
  for call in (
    lambda: ma.quantize(tree, 4, choose=lambda path: True),
    lambda: ma.storage_bytes(tree, 4, choose=lambda path: True),
    lambda: ma.prune(tree, 0.5, granularity="nm:4", **names),
    lambda: ma.prune(tree, 0.5, scope="layerwise", **names),
    lambda: ma.prune(tree, 0.5, scope="erk", **names),
  ):
    with pytest.raises(ValueError, match=message):
      call()
  ma.prune(tree, 0.5, **names)  # to whom it does not matter
  rule = {f"*/{last}": "i" * (len(shape) - 1) + "o"}
  stored = ma.quantize(tree, 4, choose=lambda path: True, axes=rule)
  expected = (*(1,) * (len(shape) - 1), shape[-1])
  assert stored[layer][last].scale.shape == expected
  ma.prune(tree, 0.5, scope="layerwise", axes=rule, **names)


def test_rules_come_first():
  shapes = {"a/kernel": (3, 8, 4), "a/bias": (4,), "b/kernel": (8, 4)}
  assert described(**shapes)["a/kernel"] == leaves.Axes((0, 1), (2,))
  rules = {"a/*nel": "iso", "*/kernel": "oi..."}
  found = described(rules, **shapes)
  assert found["a/kernel"] == leaves.Axes((0,), (2,), (1,))
  assert found["b/kernel"] == leaves.Axes((1,), (0,))
  for wrong, message in (
    ({"c/kernel": "io"}, "matches no leaf; did you mean './kernel'"),
    ({"a/kernel": "io"}, r"a/kernel: axes 'io' do not fit the shape \(3, 8, 4"),
    ({"a/kernel": "iox"}, "i, o or s"),
    ({"b/kernel": "iio..."}, "do not fit"),
  ):
    with pytest.raises(ValueError, match=message):
      described(wrong, **shapes)


def test_n_of_m_of_heads_that_fit_together():
  """Two heads of six are three groups of four, as the product sums them."""
  out = draw(2, 6, 4)
  mask = ma.prune({"out": {"kernel": out}}, 0.5, granularity="nm:4")
  rows = np.asarray(mask["out"]["kernel"]).reshape(3, 4, 4)
  assert np.all(rows.sum(1) == 2)
  with pytest.raises(ValueError, match="axis 1 of leaf 'out/kernel' has 5"):
    ma.prune({"out": {"kernel": draw(2, 5, 4)}}, 0.5, granularity="nm:4")


def test_stacked_layers_have_names_and_scales_of_their_own():
  tree = {"a": {"kernel": draw(3, 8, 4), "bias": draw(3, 4)}}
  tree["a"]["kernel"] *= jnp.array([1.0, 10.0, 100.0])[:, None, None]
  masks = ma.prune(tree, 0.5, scope={"a": 0.75, "a/kernel/2": 0.25})
  counts = np.asarray(masks["a"]["kernel"]).sum((1, 2))
  np.testing.assert_array_equal(counts, [8, 8, 24])
  ranking = ma.rank(jax.tree.map(jnp.abs, tree), scope="erk")
  names = [layer.name for layer in ranking.plan.layers]
  assert names == ["a/kernel/0", "a/kernel/1", "a/kernel/2"]
  alone = jax.vmap(lambda p: ma.dequantize(ma.quantize(p, 4, "group:4")))(tree)
  both = ma.dequantize(ma.quantize(tree, 4, "group:4"))
  np.testing.assert_array_equal(both["a"]["kernel"], alone["a"]["kernel"])
  error = np.abs(both["a"]["kernel"] / tree["a"]["kernel"] - 1)
  assert np.median(error) < 0.1


def test_learned_steps_go_by_the_rules():
  """A query without a bias: one step for each unit of each head."""
  tree = {"to_q": {"kernel": draw(8, 2, 4)}}
  rules = {"to_q/kernel": "ioo"}
  steps = ma.lsq.init_steps(tree, 4, axes=rules)
  assert steps["to_q/kernel"].shape == (1, 2, 4)
  rounded = ma.lsq.quantize(tree, steps, 4, axes=rules)
  stored = ma.lsq.to_qtensors(tree, steps, 4, axes=rules)
  np.testing.assert_array_equal(
    ma.dequantize(stored)["to_q"]["kernel"], rounded["to_q"]["kernel"]
  )
  with pytest.raises(ValueError, match="leaf 'to_q/kernel': say what its axes"):
    ma.lsq.init_steps(tree, 4)


def test_gptq_takes_kernels_of_one_layer():
  tree = {"a": {"kernel": draw(3, 8, 4), "bias": draw(3, 4)}}

  def apply(params, x, tap):
    return tap("a/kernel", x)

  with pytest.raises(ValueError, match="of one layer, not 'a/kernel', whose"):
    ma.gptq(apply, tree, draw(2, 8), 4)


def test_an_nnx_optimizer_keeps_masked_weights_zero():
  model = module()
  masks = ma.prune(nnx.state(model, nnx.Param), 0.5)
  tx = ma.masked(optax.adam(0.1), masks)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  x = draw(3, 4)

  @nnx.jit
  def step(model, optimizer):
    grads = nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model)
    optimizer.update(model, grads)

  for _ in range(2):
    step(model, optimizer)
  named = dict(leaves.named(nnx.state(model, nnx.Param)))
  for path, mask in leaves.named(masks):
    mask = np.broadcast_to(mask, named[path].shape)
    assert not np.any(np.asarray(named[path])[~mask])
    if path[-1] == "kernel":
      assert np.all(np.asarray(named[path])[mask])
