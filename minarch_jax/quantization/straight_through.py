"""Quantization-aware training: round forward, pass gradients straight through.

The float parameters are trained; the loss sees them rounded:

  def loss(params, batch):
    rounded = straight_through(params, bits=2)
    return cross_entropy(model.apply(rounded, batch.x), batch.y)

so the optimizer, masks and the training loop need not know of it.
"""

import jax
import jax.numpy as jnp

from minarch_jax import registries, types
from minarch_jax.quantization import activations, formats, tensors, trees
from minarch_jax.quantization import calibration as calibrations


def pass_through(
  x: jax.Array, rounded: jax.Array, passes: jax.Array
) -> jax.Array:
  """Has the value of `rounded` and the gradient of x where it passes.

  Written as rounded + (x - x), which is exactly `rounded`.
  """
  moving = jnp.where(passes, x, 0.0)
  still = jax.lax.stop_gradient(moving)
  return jax.lax.stop_gradient(rounded) + (moving - still)


def straight_through(
  params: types.Params,
  bits: trees.TreeBits,
  granularity: str = "channel",
  *,
  calibration: calibrations.Rule = None,
  within: types.Masks | None = None,
  choose: trees.Choose = registries.is_weight,
) -> types.Params:
  """Rounds weights as `fake_quantize` does, with the clipped gradient.

  >>> def rounded_loss(params):
  ...   return loss(ma.straight_through(params, bits=2), batch)
  >>> grads = jax.grad(rounded_loss)(params)

  The gradient is 1 inside the calibrated range and 0 where a weight is
  clipped (Bengio et al. 2013, arXiv 1308.3432; clipped as in Courbariaux et
  al. 2016, arXiv 1602.02830, equation 4). A range by absolute maximum clips
  nothing.

  Takes the arguments of `fake_quantize`, a traced `bits` too.
  """

  def change(leaf, name, layout, mask):
    options = {"calibration": calibration, "within": mask}
    fixed = jax.lax.stop_gradient(leaf)
    rounded = tensors.fake_quantize_tensor(fixed, name, layout, **options)
    passes = tensors.unclipped_tensor(fixed, name, layout, **options)
    if isinstance(name, jax.Array):
      passes = passes | (name >= 32)
    return pass_through(leaf, rounded, passes)

  return trees.map_weights(change, params, bits, granularity, within, choose)


def straight_through_tap(
  bits: formats.Bits, ranges: activations.Ranges | None = None
) -> types.Tap:
  """Makes the tap that rounds activations with the clipped gradient.

  >>> tap = ma.straight_through_tap(bits=4)
  >>> model.apply(params, x, tap=tap).shape
  (9, 3)

  Args:
    bits: a width or format name.
    ranges: from `activations.calibrate`; None = the range of the batch at
      hand, in training and evaluation alike.
  """
  format = activations.activation_format(bits)

  def tap(name: str, y: jax.Array) -> jax.Array:
    fixed = jax.lax.stop_gradient(y)
    if ranges is None:
      low, high = activations.range_of(fixed, format)
    else:
      low, high = ranges[name]
    rounded = activations.round_to_range(fixed, (low, high), format)
    return pass_through(y, rounded, (y >= low) & (y <= high))

  return tap
