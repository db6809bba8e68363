"""Anybody's model shows its layers' inputs, as a copy written by hand does."""

import functools

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import leaves
from minarch_jax.quantization.networks import gptq


def images(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Convolves(nn.Module):
  """All that a hand-written tap must reproduce."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(6, (3, 2), strides=2, padding=((1, 0), (0, 1)))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = nn.remat(nn.Conv)(4, (3, 3), kernel_dilation=2)(x)
    x = nn.Conv(4, (2,))(x.mean(1))
    x = x + nn.MultiHeadDotProductAttention(2)(x)
    return nn.Dense(3)(x.reshape(len(x), -1))


@functools.cache
def linen():
  model, x = Convolves(), images(5, 8, 8, 2)
  made = jax.jit(model.init)(jax.random.key(0), x)
  rest = {"batch_stats": made["batch_stats"]}
  return ma.tapped(model, rest), made["params"], x, model, rest


def test_a_tapped_model_is_the_model():
  apply, params, x, model, rest = linen()
  expected = model.apply({"params": params, **rest}, x)
  np.testing.assert_array_equal(apply(params, x), expected)
  seen = []

  def tap(name, y):
    seen.append(name)
    return y

  found = apply(params, x, tap=tap)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  weights = {"/".join(path) for path in leaves.weights(params)}
  assert sorted(seen) == sorted(weights) and len(seen) == 8
  grads = jax.jit(jax.grad(lambda p: apply(p, x, tap=tap).sum()))(params)
  plain = jax.jit(jax.grad(lambda p: apply(p, x).sum()))(params)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    *(grads, plain),
  )


def test_what_a_tap_returns_is_what_is_multiplied():
  apply, params, x, *_ = linen()
  halved = apply(params, x, lambda name, y: y * 0.5 if "Dense" in name else y)
  bias = params["Dense_0"]["bias"][None]
  expected = (apply(params, x) - bias) * 0.5 + bias
  np.testing.assert_allclose(halved, expected, rtol=1e-4, atol=1e-6)


def test_rows_of_windows_times_kernels_are_convolutions():
  apply, params, x, *_ = linen()
  _, seen = ma.record_inputs(apply, params, x)
  assert set(apply.windows) == {n for n in seen if "Conv" in n}
  for name, window in apply.windows.items():
    kernel = params[name.split("/")[0]]["kernel"]
    rows = gptq.window_rows(seen[name], kernel.shape[:-2], window)
    space = "DHW"[-(kernel.ndim - 2) :]
    expected = jax.lax.conv_general_dilated(
      seen[name],
      kernel,
      window.strides,
      window.padding,
      rhs_dilation=window.dilation,
      dimension_numbers=(f"N{space}C", space + "IO", f"N{space}C"),
    )
    found = rows @ kernel.reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(found, expected.reshape(found.shape), atol=1e-5)


class Net(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List(
      [nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)]
    )
    self.last = nnx.Linear(16, 3, rngs=rngs)

  def __call__(self, x):
    for layer in self.layers:
      x = nnx.relu(layer(x))
    return self.last(x)


def nnx_net():
  model = Net(nnx.Rngs(0))
  return model, nnx.state(model, nnx.Param)


def equinox_net():
  eqx = pytest.importorskip("equinox")
  model = eqx.nn.MLP(8, 3, 16, 2, key=jax.random.key(0))
  return model, model


def linen_net():
  layers = [nn.Dense(16), nn.relu, nn.Dense(16), nn.relu, nn.Dense(3)]
  model = nn.Sequential(layers)
  return model, jax.jit(model.init)(jax.random.key(0), images(2, 8))


NETS = {"linen": linen_net, "nnx": nnx_net, "equinox": equinox_net}
every_net = pytest.mark.parametrize("kind", NETS)


def by_hand(params, x, tap=lambda name, y: y):
  """What all three are, of dictionaries of kernels [inputs, outputs]."""
  for i, layer in enumerate(params.values()):
    x = tap(f"{i}/kernel", x) @ layer["kernel"] + layer["bias"][None]
    x = jax.nn.relu(x) if i < 2 else x
  return x


@functools.cache
def case(kind):
  """A model, its parameters, and the same as dictionaries, with the names."""
  model, params = NETS[kind]()
  leaf_at = dict(leaves.named(params))
  _, seen = ma.record_inputs(ma.tapped(model), params, images(2, 8))
  weights = [tuple(name.split("/")) for name in seen]
  turned = kind == "equinox"
  plain = {
    str(i): {
      "kernel": np.asarray(leaf_at[path]).T if turned else leaf_at[path],
      "bias": leaf_at[(*path[:-1], "bias")],
    }
    for i, path in enumerate(weights)
  }
  names = ["/".join(path) for path in weights]
  return ma.tapped(model), params, plain, names, turned


@every_net
def test_any_model_is_calibrated_and_cut_as_if_tapped_by_hand(kind):
  apply, params, plain, names, turned = case(kind)
  x = images(64, 8)
  outputs, seen = ma.record_inputs(apply, params, x)
  expected, ours = ma.record_inputs(by_hand, plain, x)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
  for name, y in zip(names, ours.values(), strict=True):
    np.testing.assert_allclose(seen[name], y, rtol=1e-4, atol=1e-5)
  ranges = ma.calibrate_activations(apply, params, x)
  for name, y in zip(names, ours.values(), strict=True):
    low, high = min(np.min(y), 0), max(np.max(y), 0)
    np.testing.assert_allclose(ranges[name], (low, high), rtol=1e-4, atol=1e-5)
  tap = ma.activation_tap(ranges, bits=4)
  rough = apply(params, x, tap=tap)
  assert 0.005 < np.abs(rough - outputs).mean() < 0.2
  masks = ma.prune(params, 0.5, "wanda", "layerwise", activations=seen)
  cut = ma.prune(plain, 0.5, "wanda", "layerwise", activations=ours)
  marks = dict(leaves.named(masks))
  for name, layer in zip(names, cut.values(), strict=True):
    mask = np.asarray(marks[tuple(name.split("/"))])
    np.testing.assert_array_equal(mask.T if turned else mask, layer["kernel"])


@every_net
@pytest.mark.parametrize("granularity", ["channel", "group:4"])
def test_gptq_of_any_model_is_that_of_kernels_by_hand(kind, granularity):
  apply, params, plain, names, turned = case(kind)
  x = images(64, 8)
  found = ma.gptq(apply, params, x, 3, granularity)
  expected = ma.gptq(by_hand, plain, x, 3, granularity)
  assert jax.tree.structure(ma.dequantize(found)) == jax.tree.structure(params)
  numbers = ma.dequantize(found)
  stored, number = dict(leaves.named(found)), dict(leaves.named(numbers))
  for name, layer in zip(names, expected.values(), strict=True):
    path = tuple(name.split("/"))
    codes = np.asarray(stored[path].values)
    codes = codes.T if turned else codes
    assert np.mean(codes != layer["kernel"].values) < 0.01
    back = np.asarray(number[path])
    np.testing.assert_allclose(
      back.T if turned else back,
      ma.dequantize(layer["kernel"]),
      atol=0.3 * np.abs(back).max(),
    )
  nearest = ma.dequantize(ma.quantize(params, 3, granularity))
  true = apply(params, x)
  errors = [
    float(jnp.mean(jnp.square(apply(p, x) - true)))
    for p in (ma.dequantize(found), nearest)
  ]
  assert errors[0] < errors[1]


def test_gptq_of_convolutions_changes_outputs_less():
  apply, params, x, *_ = linen()
  x = images(40, 8, 8, 2)
  true = apply(params, x)
  errors = [
    float(jnp.mean(jnp.square(apply(ma.dequantize(q), x) - true)))
    for q in (ma.gptq(apply, params, x, 3), ma.quantize(params, 3))
  ]
  assert errors[0] < 0.8 * errors[1]


class Equinoxes:
  """Two convolutions of Equinox, channels first."""

  @staticmethod
  def make():
    eqx = pytest.importorskip("equinox")
    a, b = jax.random.split(jax.random.key(0))
    return eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, key=a),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(4, 3, 2, key=b),
      ]
    )


def test_windows_of_channels_first():
  model, x = Equinoxes.make(), images(30, 2, 7, 7)
  apply = ma.tapped(model)
  true = jax.vmap(model)(x)
  np.testing.assert_allclose(apply(model, x), true, rtol=1e-5)
  _, seen = ma.record_inputs(apply, model, x)
  for name, y in seen.items():
    layer = model.layers[int(name.split("/")[1])]
    rows = gptq.window_rows(y, layer.kernel_size, apply.windows[name])
    expected = jax.vmap(layer)(y) - layer.bias[None]
    found = rows @ layer.weight.reshape(len(layer.weight), -1).T
    expected = jnp.moveaxis(expected, 1, -1).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
  masks = ma.prune(model, 0.5, "wanda", activations=seen)
  first = np.asarray(model.layers[0].weight)
  norms = np.sqrt(np.square(x).sum((0, 2, 3)))[None, :, None, None]
  scores = np.abs(first) * norms
  kept = np.asarray(masks.layers[0].weight)
  assert scores[kept].min() >= scores[~kept].max()
  errors = [
    float(jnp.mean(jnp.square(apply(ma.dequantize(q), x) - true)))
    for q in (ma.gptq(apply, model, x, 3), ma.quantize(model, 3))
  ]
  assert errors[0] < errors[1]


# --- what cannot be shown ----------------------------------------------------


class Loops(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.LSTMCell(3))(x)


class Grouped(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Conv(4, (3, 3), feature_group_count=2)(x).mean((1, 2))


class Twice(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(8)
    return layer(nn.relu(layer(x)))


def test_a_layer_used_twice_sees_both_inputs():
  x = images(4, 8)
  params = Twice().init(jax.random.key(0), x)["params"]
  _, seen = ma.record_inputs(ma.tapped(Twice()), params, x)
  (y,) = seen.values()
  assert y.shape == (8, 8)
  np.testing.assert_array_equal(y[:4], x)


@pytest.mark.parametrize(
  "model, shape, message",
  [
    (Loops(), (2, 5, 4), "is used inside a scan .*loop of Python"),
    (Grouped(), (2, 6, 6, 4), "'Conv_0/kernel' because of groups; leave it"),
  ],
  ids=["scan", "groups"],
)
def test_layers_that_cannot_be_rounded_are_named(model, shape, message):
  x = images(*shape)
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]
  with pytest.raises(ValueError, match=message):
    ma.gptq(ma.tapped(model), params, x, 4)


def test_models_without_taps_are_told_the_remedy():
  model, params = linen_net()
  for apply in (lambda params, x: model.apply(params, x), model.apply):
    with pytest.raises(ValueError, match=r"no tap=.*apply=ma.tapped\(module"):
      ma.gptq(apply, params, images(2, 8), 4)
  with pytest.raises(ValueError, match="is no module of Flax .* or Equinox"):
    ma.tapped(lambda params, x: x)
  with pytest.raises(ValueError, match="collections of Linen"):
    ma.tapped(nnx_net()[0], {"batch_stats": {}})
