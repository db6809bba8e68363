"""Quantization of trained networks: activations, training, rounding, choice."""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minarch_jax import architectures, leaves, models, quantization, types
from minarch_jax.architectures import Problem
from minarch_jax.quantization import (
  activations,
  layouts,
  storage,
  straight_through,
  trees,
)
from minarch_jax.quantization.networks import (
  gptq,
  gptq_core,
  integer,
  lsq,
  mixed,
)

# Attention kernels have two input or two output axes; the rest stays float.
ATTENTION = {
  f"block_0/attention/{name}/kernel": 3 for name in ("query", "value", "out")
}
NETWORKS = ["dnn:16-12", "cnn:3-4", "vit:p4-d8-l1-h2"]


def fit(params, loss, x, y, steps=250, rate=5e-3):
  """Trains any tree by Adam on random minibatches, in one program."""
  tx = optax.adam(rate)
  order = jax.random.randint(jax.random.key(1), (steps, 64), 0, len(y))

  def step(carry, indices):
    params, state = carry
    grads = jax.grad(loss)(params, x[indices], y[indices])
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(params):
    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]

  return run(params)


def cross_entropy(logits, y):
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


class Trained:
  """A network with what tests ask of it; built once per name."""

  def __init__(self, name, digits):
    self.x, self.y = jnp.asarray(digits.train.x), jnp.asarray(digits.train.y)
    self.val = jnp.asarray(digits.validation.x)
    self.labels = np.asarray(digits.validation.y)
    architecture = architectures.Architecture.parse(name)
    shape = digits.input_shape
    model = models.make_model(architecture, Problem(shape, digits.num_classes))
    self.apply = model.apply
    self.params = fit(
      jax.jit(model.init)(jax.random.key(0)), self.loss, self.x, self.y
    )
    run = jax.jit(lambda p: model.apply(p, self.val))
    self.logits = lambda params: np.asarray(run(params))

  def loss(self, params, x, y):
    return cross_entropy(self.apply(params, x), y)

  def accuracy(self, logits):
    return np.mean(np.argmax(logits, -1) == self.labels)


@pytest.fixture(scope="module")
def trained(digits):
  return functools.cache(lambda name: Trained(name, digits))


# --- activations -------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_and_activations(trained, name):
  """8 bits of both lose almost nothing, fewer lose more, 32 nothing."""
  net = trained(name)
  calibrate = jax.jit(functools.partial(activations.calibrate, net.apply))
  ranges = calibrate(net.params, net.x[:256])
  kernels = {n for n in trees.weight_names(net.params) if "kernel" in n}
  assert set(ranges) == kernels
  exact = net.logits(net.params)

  @jax.jit
  def run(bits):
    rounded = quantization.fake_quantize(net.params, bits)
    tap = activations.make_tap(ranges, bits)
    return net.apply(rounded, net.val, tap=tap)

  logits = {b: np.asarray(run(b)) for b in (32, 8, 6, 4, 2)}

  errors = [np.mean((y - exact) ** 2) for y in logits.values()]
  assert errors[0] < 1e-8 and errors == sorted(errors)
  assert net.accuracy(logits[8]) >= net.accuracy(exact) - 0.01
  assert net.accuracy(logits[4]) > 0.5


def test_static_tap_equals_traced(trained):
  net = trained("dnn:16-12")
  ranges = activations.calibrate(net.apply, net.params, net.x[:256])
  traced = jax.jit(
    lambda b: net.apply(
      net.params, net.val, tap=activations.make_tap(ranges, b)
    )
  )
  static = jax.jit(
    lambda: net.apply(net.params, net.val, tap=activations.make_tap(ranges, 4))
  )
  np.testing.assert_allclose(traced(4), static(), rtol=1e-3, atol=1e-4)


def test_activation_calibrations(trained):
  """A percentile is narrower."""
  net = trained("dnn:16-12")
  calibrate = functools.partial(activations.calibrate, net.apply, net.params)
  whole = calibrate(net.x[:256])
  clipped = calibrate(net.x[:256], 4, calibration="percentile")
  for name, (low, high) in whole.items():
    assert low <= clipped[name][0] <= 0 <= clipped[name][1] <= high
  assert clipped["output/kernel"][1] < whole["output/kernel"][1]
  # ReLU inputs are never negative, so no code is spent below 0.
  assert whole["output/kernel"][0] == 0


def test_activation_errors(trained):
  net = trained("dnn:16-12")
  with pytest.raises(ValueError, match="empty batch"):
    activations.calibrate(net.apply, net.params, net.x[:0])
  with pytest.raises(ValueError, match="input of 'hidden_0/kernel' is NaN"):
    activations.calibrate(net.apply, net.params, net.x[:9] * np.nan)
  with pytest.raises(ValueError, match="format of weights"):
    activations.calibrate(net.apply, net.params, net.x[:9], 1)
  with pytest.raises(ValueError, match="no range for the input of 'hidden_0"):
    net.apply(net.params, net.val, tap=activations.make_tap({}, 8))


def test_networks_without_taps_are_refused(trained):
  """Nearest rounding, or nothing, would stand for what was asked."""
  net = trained("dnn:16-12")
  silent = {
    "never called its tap": lambda params, x, tap: net.apply(params, x),
    "takes no tap=": lambda params, x: net.apply(params, x),
  }
  for message, apply in silent.items():
    for call in (
      lambda apply: types.record_inputs(apply, net.params, net.x[:8]),
      lambda apply: quantization.calibrate(apply, net.params, net.x[:8]),
      lambda apply: gptq.gptq(apply, net.params, net.x[:8], 4),
    ):
      with pytest.raises(ValueError, match=f"{message}.*call y = tap"):
        call(apply)

  def part(params, x, tap):
    def last(name, y):
      return tap(name, y) if name == "output/kernel" else y

    return net.apply(params, x, tap=last)

  with pytest.raises(ValueError, match="'hidden_0/kernel' is not known.*: 32"):
    gptq.gptq(part, net.params, net.x[:8], 4)
  bits = {"hidden_0/kernel": 32, "hidden_1/kernel": 32, "output/kernel": 4}
  rounded = gptq.gptq(part, net.params, net.x[:8], bits)
  assert leaves.is_qtensor(rounded["output"]["kernel"])

  def renamed(params, x, tap):
    return net.apply(params, x, tap=lambda name, y: tap(name[:-7], y))

  with pytest.raises(
    ValueError, match="'hidden_0', which is no quantized leaf"
  ):
    gptq.gptq(renamed, net.params, net.x[:8], 4)


# --- training ----------------------------------------------------------------


def test_straight_through_value_and_gradient():
  """The value is the rounded one, the gradient 1 where nothing is clipped."""
  w = np.random.default_rng(0).standard_t(2, (50, 3)).astype(np.float32)
  params = {"kernel": w, "bias": w[0]}
  for bits, calibration in ((3, None), (3, "percentile"), ("binary", None)):
    options = {"bits": bits, "calibration": calibration}
    rounded = quantization.fake_quantize(params, **options)
    trained_on, pull = jax.vjp(
      functools.partial(straight_through.straight_through, **options), params
    )
    jax.tree.map(np.testing.assert_array_equal, trained_on, rounded)
    (gradient,) = pull(jax.tree.map(jnp.ones_like, params))
    clipped = np.zeros_like(w, bool)
    if calibration:
      clipped = np.abs(w) > np.abs(rounded["kernel"]).max(0, keepdims=True)
      assert clipped.sum() == 3
    np.testing.assert_array_equal(gradient["kernel"], ~clipped)
    np.testing.assert_array_equal(gradient["bias"], 1.0)


def test_straight_through_training_beats_rounding_afterwards(trained):
  """2-bit weights and activations, equal steps with the float control."""
  net = trained("dnn:16-12")
  tap = straight_through.straight_through_tap(2)

  def logits(params, x):
    rounded = straight_through.straight_through(params, 2)
    return net.apply(rounded, x, tap=tap)

  def loss(params, x, y):
    return cross_entropy(logits(params, x), y)

  aware = fit(net.params, loss, net.x, net.y)
  control = fit(net.params, net.loss, net.x, net.y)
  run = jax.jit(lambda p: logits(p, net.val))
  assert net.accuracy(run(aware)) > net.accuracy(run(control)) + 0.1


def test_lsq_gradients_follow_the_paper():
  """Equations 3 and 5: inside round(x/s) - x/s, outside the last code."""
  x = jnp.array([-9.0, -1.2, -0.4, 0.3, 1.4, 8.0])
  step = jnp.array(0.5)
  rounded, pull = jax.vjp(
    lambda x, s: lsq.round_with_step(x, s, -3.0, 3.0, 6), x, step
  )
  np.testing.assert_allclose(rounded, [-1.5, -1, -0.5, 0.5, 1.5, 1.5])
  to_x, to_step = pull(jnp.ones(6))
  np.testing.assert_array_equal(to_x, [0, 1, 1, 1, 1, 0])
  ratio = np.array([-2.4, -0.8, 0.6, 2.8])
  expected = np.sum(np.round(ratio) - ratio) - 3 + 3
  np.testing.assert_allclose(to_step, expected / np.sqrt(18), rtol=1e-4)


def test_lsq_training(trained):
  """Trains steps with weights, and is stored as what it was trained as."""
  net = trained("dnn:16-12")
  bits = 2

  weights = lsq.init_steps(net.params, bits)
  inputs = activations.inputs(net.apply, net.params, net.x[:256])
  steps, signed = lsq.init_activation_steps(inputs, bits)
  assert signed == {
    "hidden_0/kernel": True,
    "hidden_1/kernel": False,
    "output/kernel": False,
  }

  def logits(tree, x):
    rounded = lsq.quantize(tree["params"], tree["weights"], bits)
    return net.apply(rounded, x, tap=lsq.make_tap(tree["inputs"], signed, bits))

  def loss(tree, x, y):
    return cross_entropy(logits(tree, x), y)

  tree = {"params": net.params, "weights": weights, "inputs": steps}
  after = fit(tree, loss, net.x, net.y)
  run = jax.jit(lambda t: logits(t, net.val))
  assert net.accuracy(run(after)) > net.accuracy(run(tree)) + 0.1
  assert net.accuracy(run(after)) > 0.7
  stored = lsq.to_qtensors(after["params"], after["weights"], bits)
  jax.tree.map(
    np.testing.assert_array_equal,
    quantization.dequantize(stored),
    lsq.quantize(after["params"], after["weights"], bits),
  )
  with pytest.raises(ValueError, match="symmetric integers"):
    lsq.init_steps(net.params, "nf4")


# --- second-order rounding ---------------------------------------------------


def test_gptq_core_is_optimal_for_independent_inputs():
  """With a diagonal Hessian there is nothing to make up for."""
  w = jax.random.normal(jax.random.key(0), (12, 4))
  moved = gptq_core.round_rows(
    w, jnp.diag(jnp.arange(1.0, 13)), lambda i, row: jnp.round(row), 0.01
  )
  np.testing.assert_allclose(moved, w, atol=1e-5)


def test_gptq_core_beats_nearest_on_correlated_inputs():
  key = jax.random.key(1)
  x = jax.random.normal(key, (200, 4)) @ jax.random.normal(key, (4, 20))
  x = x + 0.1 * jax.random.normal(key, x.shape)
  w = jax.random.normal(jax.random.key(2), (20, 6)) * 2
  hessian = x.T @ x / 200
  moved = gptq_core.round_rows(w, hessian, lambda i, row: jnp.round(row), 0.01)

  def error(q):  # of the layer's outputs
    return jnp.sum((x @ (w - jnp.round(q))) ** 2)

  assert error(moved) < 0.5 * error(w)


@pytest.mark.parametrize(
  "name, bits, granularity",
  [
    ("dnn:16-12", 4, "channel"),
    ("cnn:4", "uint3", "group:5"),
    ("vit:p4-d8-l1-h2", ATTENTION, "tensor"),
  ],
)
def test_gptq_beats_nearest_rounding(trained, name, bits, granularity):
  """Smaller error of the logits on images it was not calibrated on."""
  net = trained(name)
  if isinstance(bits, dict):
    bits = dict.fromkeys(trees.weight_names(net.params), 32) | bits
  nearest = quantization.fake_quantize(net.params, bits, granularity)
  quantize = functools.partial(gptq.gptq, net.apply)
  better = jax.jit(lambda p, x: quantize(p, x, bits, granularity))(
    net.params, net.x[:512]
  )
  assert jax.tree.structure(better) == jax.tree.structure(
    quantization.quantize(net.params, bits, granularity)
  )
  exact = net.logits(net.params)
  error = np.mean((net.logits(quantization.dequantize(better)) - exact) ** 2)
  assert error < 0.8 * np.mean((net.logits(nearest) - exact) ** 2)


def test_gptq_keeps_pruned_weights_at_zero(monkeypatch):
  """... also where a kernel has more inputs than one block."""
  monkeypatch.setattr(gptq, "_BLOCK", 10)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 24))
  w = rng.normal(size=(24, 6)) * (rng.random((24, 6)) < 0.5)
  x, w = x.astype(np.float32), w.astype(np.float32)
  layout = layouts.Layout((0,))
  run = jax.jit(lambda w, x: gptq.quantize_kernel(w, x, "uint3", layout))
  better = np.asarray(quantization.dequantize(run(w, x)))
  nearest = quantization.fake_quantize({"kernel": w}, "uint3")["kernel"]
  np.testing.assert_array_equal(better[w == 0], 0.0)
  error, plain = (np.mean((x @ (w - q)) ** 2) for q in (better, nearest))
  assert error < 0.95 * plain


@pytest.mark.parametrize("masked", [True, False])
def test_gptq_in_a_parent_is_gptq_alone(masked):
  """... mapped over networks; without the masks damping is another."""
  problem = Problem((4, 4, 1), 3)
  own, wide = (
    architectures.Architecture.parse(text) for text in ("dnn:6-5", "dnn:20-9")
  )
  spec, parent = own.spec(problem), wide.spec(problem)
  sizes = own.sizes(problem)
  small, large = (models.make_model(a, problem) for a in (own, wide))
  x = jax.random.normal(jax.random.key(3), (40, *problem.input_shape))
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  params = jax.device_get(jax.vmap(small.init)(keys))
  within = jax.device_get(jax.jit(lambda: models.width_masks(parent, sizes))())

  def apply(params, x, **hooks):
    return large.apply(params, x, sizes, **hooks)

  def round_in_parent(params):
    options = {"within": within} if masked else {}
    quantized = gptq.gptq(apply, params, x, 3, damping=0.5, **options)
    return quantization.dequantize(quantized)

  def round_alone(params):
    return quantization.dequantize(
      gptq.gptq(small.apply, params, x, 3, damping=0.5)
    )

  alone = jax.jit(jax.vmap(round_alone))(params)
  stacked = models.pad(params, spec, parent)
  padded = jax.jit(lambda p: jax.lax.map(round_in_parent, p))(stacked)
  inside = models.unpad(jax.device_get(padded), spec, parent)
  close = [
    np.mean(np.isclose(a, b, atol=1e-6))
    for a, b in zip(
      jax.tree.leaves(alone), jax.tree.leaves(inside), strict=True
    )
  ]
  assert (min(close) > 0.99) == masked


@pytest.mark.parametrize("name", ["dnn:4-3", "cnn:2-3", "vit:p4-d16-l1-h4"])
def test_gptq_multiplies_rows_with_all_inputs_of_a_kernel(name):
  """... also where as many heads as a head is wide look like one axis."""
  problem = Problem((8, 8, 1), 3)
  architecture = architectures.Architecture.parse(name)
  model = models.make_model(architecture, problem)
  params = jax.eval_shape(model.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((6, *problem.input_shape), jnp.float32)
  seen = []

  def kernel(w, rows, *arguments, **options):
    seen.append((rows.shape[1], w.shape))
    return quantize(w, rows, *arguments, **options)

  quantize = gptq.quantize_kernel
  with mock.patch.object(gptq, "quantize_kernel", kernel):
    jax.eval_shape(lambda p, x: gptq.gptq(model.apply, p, x, 4), params, x)
  spec = architecture.spec(problem)
  expected = [
    (math.prod(shape[: len(shape) - leaf.outputs]), shape)
    for leaf in spec.leaves
    if leaf.path[-1] == "kernel"
    for shape in [spec.shape(leaf)]
  ]
  assert sorted(seen) == sorted(expected)


def test_gptq_refuses_an_empty_batch(trained):
  net = trained("dnn:16-12")
  with pytest.raises(ValueError, match="empty batch"):
    gptq.gptq(net.apply, net.params, net.x[:0], 4)


# --- integers ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn:4", "cnn:3-4"])
def test_integer_networks(trained, name):
  """int8 networks agree with the float ones, and exactly with themselves."""
  net = trained(name)
  network = integer.integer_network(net.apply, net.params, net.x[:256])
  exact = net.logits(net.params)
  run = jax.jit(integer.run)
  logits = np.asarray(run(network, net.val))
  assert net.accuracy(logits) >= net.accuracy(exact) - 0.01
  assert np.mean((logits - exact) ** 2) < 1e-3 * np.mean(exact**2)
  np.testing.assert_array_equal(logits[:7], run(network, net.val[:7]))
  np.testing.assert_array_equal(logits[:7], network(net.val[:7]))


def test_integer_networks_refuse_transformers(trained):
  net = trained("vit:p4-d8-l1-h2")
  with pytest.raises(ValueError, match="only dense and convolutional"):
    integer.integer_network(net.apply, net.params, net.x[:9])


# --- choice ------------------------------------------------------------------


def test_mixed_precision_fits_its_budget(trained):
  """Sensitive layers keep bits, and the choice beats its own reverse."""
  net = trained("cnn:3-4")
  loss = jax.jit(lambda p: net.loss(p, net.x[:512], net.y[:512]))
  rises = mixed.sensitivity(loss, net.params, (8, 4, 2))
  assert set(rises) == set(trees.weight_names(net.params))
  assert all(r["int2"] > r["int8"] for r in rises.values())
  budget = storage.storage_bytes(net.params, 4)
  bits = mixed.allocate(rises, net.params, budget)
  assert storage.storage_bytes(net.params, bits) <= budget
  everything = mixed.allocate(rises, net.params, 10**6)
  assert set(everything.values()) == {"int8"}
  narrowest = storage.storage_bytes(net.params, 2)
  assert mixed.mixed_precision(loss, net.params, budget) == bits
  tight = mixed.allocate(rises, net.params, narrowest)
  assert set(tight.values()) == {"int2"}
  with pytest.raises(ValueError, match=f"budget of {narrowest - 1} bytes"):
    mixed.allocate(rises, net.params, narrowest - 1)
  with pytest.raises(ValueError, match="the loss without quantization is nan"):
    mixed.sensitivity(lambda p: float("nan"), net.params, (8,))


def test_greedy_allocation_is_by_loss_per_byte():
  shapes = {
    name: {"kernel": jax.ShapeDtypeStruct((100, 10), jnp.float32)}
    for name in ("calm", "touchy")
  }
  rises = {
    "calm/kernel": {"int8": 0.0, "int4": 0.01, "int2": 0.02},
    "touchy/kernel": {"int8": 0.0, "int4": 0.5, "int2": 2.0},
  }
  eight, four = (storage.storage_bytes(shapes, b) for b in (8, 4))
  assert mixed.allocate(rises, shapes, eight - 1) == {
    "calm/kernel": "int4",
    "touchy/kernel": "int8",
  }
  assert mixed.allocate(rises, shapes, four) == {
    "calm/kernel": "int2",
    "touchy/kernel": "int4",
  }
