"""Post-training quantization of activations, through the models' tap.

A model's `apply(params, x, tap=tap)` calls `y = tap(name, y)` on the input of
every layer, with the name of the kernel that consumes it ("hidden_0/kernel").
One tap records ranges, another rounds to them. Every layer has one range, since
a scale for each channel of an input could not leave the sum of its products.
"""

from collections.abc import Callable

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from minarch_jax import types
from minarch_jax.quantization import arithmetic, formats
from minarch_jax.quantization import calibration as calibrations

Apply = Callable[..., jax.Array]  # apply(params, x, tap=tap) -> logits
Ranges = dict[str, calibrations.Range]  # by layer; float32 scalars (low, high)


def activation_format(bits: formats.Bits) -> formats.Format:
  """Returns the format of activations: widths are asymmetric integers.

  After a ReLU the negative codes of a symmetric one would never be used.

  Raises:
    ValueError: neither a width nor a name; "binary" and "ternary", whose
      scale by mean magnitude is made for weights.
  """
  if isinstance(bits, jax.Array):
    return formats.traced_integer(jnp.clip(bits, 2, 8), symmetric=False)
  name = formats.name_of(bits)
  if str(bits) != name:  # a plain width
    asymmetric = formats.widths(symmetric=False)
    name = asymmetric.get(formats.FORMATS[name].bits, name)
  if formats.FORMATS[name].calibration != "absmax":
    raise ValueError(
      f"activation bits {bits!r} ({name}) are a format of weights; use 2 or "
      "more bits"
    )
  return formats.FORMATS[name]


def inputs(
  apply: Apply, params: types.Params, x: types.Array
) -> dict[str, jax.Array]:
  """Returns every layer's input in a forward pass, by layer name.

  Raises:
    ValueError: an empty batch, or a network without taps.
  """
  if x.shape[0] == 0:
    raise ValueError("cannot calibrate on an empty batch; pass some images")
  return types.record_inputs(apply, params, x)[1]


def calibrate(
  apply: Apply,
  params: types.Params,
  x: types.Array,
  bits: formats.Bits = 8,
  *,
  calibration: calibrations.Rule = "absmax",
) -> Ranges:
  """Measures the range of every layer's input on a calibration batch.

  >>> ranges = ma.calibrate_activations(model.apply, params, x)
  >>> logits = model.apply(params, x, tap=ma.activation_tap(ranges, bits=8))
  >>> sorted(ranges)
  ['hidden_0/kernel', 'output/kernel']

  Args:
    apply: `apply(params, x, tap=tap)` of one network.
    params: its parameters, quantized already if they will be.
    x: [B, H, W, C] images for calibration: training or validation, never
      test.
    bits: width or format the ranges are for; the searches depend on it.
    calibration: name or function.

  Returns:
    {layer: (low, high)}, float32 scalars.

  Raises:
    ValueError: an empty batch, inputs that are NaN or infinite (seen outside
      jit only), unknown bits or calibration.
  """
  format = activation_format(bits)
  rule = calibrations.resolve(calibration, format)
  seen = inputs(apply, params, x)
  for name, y in seen.items():
    known = not isinstance(y, core.Tracer)
    if known and not np.all(np.isfinite(np.asarray(y, np.float32))):
      raise ValueError(
        f"the input of {name!r} is NaN or infinite on the calibration images; "
        "leave diverged networks out"
      )
  return {name: range_of(y, format, rule) for name, y in seen.items()}


def range_of(
  y: jax.Array,
  format: formats.Format,
  rule: calibrations.Calibration = calibrations.ABSMAX,
) -> calibrations.Range:
  """Calibrates one layer's input: float32 scalars (low, high)."""
  low, high = rule.find(y.astype(jnp.float32).reshape(1, -1), None, format)
  return low.reshape(()), high.reshape(())


def round_to_range(
  y: jax.Array, span: calibrations.Range, format: formats.Format
) -> jax.Array:
  """Rounds an input to the format over its range; keeps its type."""
  x = y.astype(jnp.float32)
  if not format.scaled:
    return format.decode(format.encode(x)).astype(y.dtype)
  return arithmetic.round_trip(x, *span, format).astype(y.dtype)


def make_tap(ranges: Ranges, bits: formats.Bits) -> types.Tap:
  """Makes the tap that rounds every layer's input to its format.

  Args:
    ranges: from `calibrate`.
    bits: a width, a format name, or a traced integer (2 to 8, or 32 for the
      identity).

  Returns:
    A tap; it raises ValueError for a layer without range.
  """
  format = activation_format(bits)

  def tap(name: str, y: jax.Array) -> jax.Array:
    if name not in ranges:
      raise ValueError(
        f"no range for the input of {name!r}; calibrate the same network "
        f"(ranges: {', '.join(ranges)})"
      )
    rounded = round_to_range(y, ranges[name], format)
    if isinstance(bits, jax.Array):
      return jnp.where(bits >= 32, y, rounded)
    return rounded

  return tap
