"""Quantization-aware training: round forward, pass gradients straight through.

The float parameters are trained; the loss sees them rounded:

  def loss(params, batch):
    rounded = straight_through(params, bits=2)
    return cross_entropy(model.apply(rounded, batch.x), batch.y)

so the optimizer, masks and the training loop need not know of it.
"""

import jax
import jax.numpy as jnp

from minarch_jax import leaves, types
from minarch_jax.quantization import activations, formats, trees
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
  choose: trees.Choose | None = None,
  axes: leaves.Rules | None = None,
) -> types.Params:
  """Rounds weights for training: `fake_quantize`, by the name of its gradient.

  >>> def rounded_loss(params):
  ...   return loss(ma.straight_through(params, bits=2), batch)
  >>> grads = jax.grad(rounded_loss)(params)

  Takes the arguments of `fake_quantize`, a traced `bits` too.
  """
  return trees.fake_quantize(
    *(params, bits, granularity),
    calibration=calibration,
    within=within,
    choose=choose,
    axes=axes,
  )


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
