"""Whole networks in integers: dense and convolutional ReLU networks.

Every layer takes and gives int8 codes; only the image is rounded to codes at
the start and the logits are scaled to real numbers at the end. ReLU is a bound
on the codes and max-pooling a maximum of codes. Transformers are not run in
integers: their softmax and normalisation are real functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves, types
from minarch_jax.quantization import activations, arithmetic, formats, trees
from minarch_jax.quantization import calibration as calibrations
from minarch_jax.quantization.networks import integer_core

_INPUTS = formats.UINT8


class Layer(NamedTuple):
  """One layer in integers.

  Attributes:
    weights: int8, the kernel's shape.
    bias: int32 [N], in units of the products.
    zero_in: int32 scalar, the code of 0 in the inputs.
    multiplier: to the codes of the outputs; None in the last layer.
    zero_out: int32 scalar, the code of 0 in the outputs, where ReLU bounds
      them.
    scale: float32 [N], the real value of one unit of the products.
  """

  weights: types.Array
  bias: types.Array
  zero_in: types.Array
  multiplier: integer_core.Multiplier | None
  zero_out: types.Array
  scale: types.Array


class Network(NamedTuple):
  """Layers in order, and the scale and zero point of the images."""

  layers: tuple[Layer, ...]
  scale: types.Array
  zero_point: types.Array

  def __call__(self, x: types.Array) -> jax.Array:
    """Computes logits in integers: `run`."""
    return run(self, x)


def _step(span: calibrations.Range) -> tuple[np.ndarray, np.ndarray]:
  low, high = span
  scale, zero_point = arithmetic.step_size(low, high, _INPUTS)
  return np.asarray(scale), np.asarray(zero_point)


def _unit(q: types.QTensor, input_scale: np.ndarray) -> np.ndarray:
  """The real value of one unit of each output's products, float64 [N].

  An output without weights may choose its unit; a fine one keeps its bias.
  """
  scale = np.asarray(q.scale, np.float64).reshape(-1)
  used = np.asarray(q.values).reshape(-1, scale.size).any(0)
  fine = scale[used].min() if used.any() else 2.0**-10
  return np.where(used, scale, fine) * float(input_scale)


def _integer(q: types.QTensor) -> bool:
  format = formats.FORMATS[q.layout.format]
  return format.integer and format.symmetric


def _check(apply, params, x) -> None:
  """Raises ValueError for a network with other layers, before it is run."""
  tapped = jax.eval_shape(lambda: activations.inputs(apply, params, x))
  others = set(trees.weight_names(params)) - set(tapped)
  if others or any("/attention/" in name for name in tapped):
    raise ValueError(
      "only dense and convolutional networks run in integers; this one has "
      f"{', '.join(sorted(others)) or 'attention'}"
    )


def integer_network(
  apply: activations.Apply,
  params: types.Params,
  x: types.Array,
  bits: int = 8,
) -> Network:
  """Quantizes a dense or convolutional network for integer execution.

  >>> network = ma.integer_network(model.apply, params, x)
  >>> logits = network(x)
  >>> bool(abs(logits - model.apply(params, x)).max() < 0.1)
  True

  Args:
    apply: `apply(params, x, tap=tap)`.
    params: float parameters of one network.
    x: [B, H, W, C] calibration images, never test.
    bits: width of the weights, 8 or fewer; activations have 8.

  Raises:
    ValueError: a network with other layers than these, or bits that are not a
      symmetric integer format.
  """
  _check(apply, params, x)
  quantized = trees.quantize(params, bits, "channel")
  ranges = activations.calibrate(apply, trees.dequantize(quantized), x)
  found = dict(trees.leaves_with_names(quantized))

  names = list(ranges)
  steps = [_step(ranges[name]) for name in names]
  layers = []
  for i, name in enumerate(names):
    q = found[name]
    if not leaves.is_qtensor(q) or not _integer(q):
      raise ValueError(f"bits {bits!r}: integer execution needs 2 to 8 bits")
    scale, zero_in = steps[i]
    unit = _unit(q, scale)
    bias = np.asarray(found[name.replace("/kernel", "/bias")], np.float64)
    bias = np.clip(np.round(bias / unit), -(2.0**29), 2.0**29)
    multiplier, zero_out = None, np.zeros(())
    if i + 1 < len(names):
      next_scale, zero_out = steps[i + 1]
      multiplier = integer_core.make_multiplier(unit / float(next_scale))
    layers.append(
      Layer(
        q.values,
        bias.astype(np.int32),
        zero_in.astype(np.int32),
        multiplier,
        zero_out.astype(np.int32),
        unit.astype(np.float32),
      )
    )
  return Network(tuple(layers), *steps[0])


def _pool(codes: jax.Array) -> jax.Array:
  """Takes the maximum over 2x2 windows, flooring odd sizes."""
  height, width = codes.shape[1] // 2 * 2, codes.shape[2] // 2 * 2
  codes = codes[:, :height, :width]
  rows = jnp.maximum(codes[:, 0::2], codes[:, 1::2])
  return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def _products(layer: Layer, codes: jax.Array, padding: str) -> jax.Array:
  if layer.weights.ndim == 4:
    weights = jnp.asarray(layer.weights)
    return integer_core.convolution(codes, layer.zero_in, weights, padding)
  weights = jnp.asarray(layer.weights)
  weights = weights.reshape(-1, weights.shape[-1])
  return integer_core.dot(
    codes.reshape(codes.shape[0], -1), layer.zero_in, weights
  )


def run(network: Network, x: types.Array) -> jax.Array:
  """Computes logits in integers.

  Args:
    network: from `integer_network`.
    x: [B, H, W, C] images.

  Returns:
    float32 [B, classes].
  """
  padding = integer_core.padding_rule(
    [layer.weights.shape for layer in network.layers]
  )
  scale, zero_point = jnp.asarray(network.scale), network.zero_point
  codes = arithmetic.encode(
    jnp.asarray(x), scale, jnp.asarray(zero_point), _INPUTS
  )
  for before, layer in zip(
    (None, *network.layers), network.layers, strict=False
  ):
    if before is not None and before.weights.ndim == layer.weights.ndim == 4:
      codes = _pool(codes)
    acc = _products(layer, codes, padding)
    acc = acc + jnp.asarray(layer.bias).reshape((1,) * (acc.ndim - 1) + (-1,))
    if layer.multiplier is None:
      return acc.astype(jnp.float32) * jnp.asarray(layer.scale)[None]
    codes = integer_core.requantize(
      acc, layer.multiplier, layer.zero_out, low=layer.zero_out
    )
  raise ValueError("a network without layers")
