"""Quantize and dequantize one array: calibrate -> scale -> encode -> decode."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import types
from minarch_jax.quantization import arithmetic, formats, layouts
from minarch_jax.quantization import calibration as calibrations


@dataclasses.dataclass(frozen=True)
class Coding:
  """The static `layout` of a QTensor: its format and its blocks."""

  format: str
  blocks: layouts.Layout


def _existing(
  shape: tuple[int, ...], layout: layouts.Layout, within: Any
) -> jax.Array | None:
  """Blocks of True where an entry exists; None when all do."""
  size = np.prod([shape[axis] for axis in layout.inputs], dtype=int)
  if within is None and not (layout.group and size % layout.group):
    return None
  mask = jnp.ones((), bool) if within is None else jnp.asarray(within) != 0
  return layouts.to_blocks(jnp.broadcast_to(mask, shape), layout)


def _calibrate(x, layout, format, calibration, within):
  """Returns blocks of x with the range of each, as the format sees it."""
  blocks = layouts.to_blocks(jnp.asarray(x, jnp.float32), layout)
  existing = _existing(x.shape, layout, within)
  if existing is not None:
    blocks = jnp.where(existing, blocks, 0.0)
  rule = calibrations.resolve(calibration, format)
  return blocks, *rule(blocks, existing, format)


def quantize_tensor(
  x: types.Array,
  name: str,
  layout: layouts.Layout,
  *,
  calibration: str | calibrations.Calibration | None = None,
  within: types.Array | None = None,
) -> types.QTensor:
  """Quantizes one float array to the named format.

  Args:
    x: float array of any shape.
    name: a key of FORMATS.
    layout: which entries share a scale.
    calibration: name or function; None = the format's own.
    within: mask of the entries that exist, broadcastable to x; None = all.

  Returns:
    A QTensor of x's shape.
  """
  format, coding = formats.FORMATS[name], Coding(name, layout)
  if not format.scaled:
    codes = format.encode(jnp.asarray(x, jnp.float32))
    return types.QTensor(codes, None, None, format.bits, coding)
  blocks, low, high = _calibrate(x, layout, format, calibration, within)
  scale, zero_point = arithmetic.step_size(low, high, format)
  codes = arithmetic.encode(blocks, scale, zero_point, format)
  shape = layouts.scale_shape(layout, x.shape)
  if zero_point is not None:
    zero_point = zero_point.astype(jnp.int8).reshape(shape)
  return types.QTensor(
    layouts.from_blocks(codes, layout, x.shape),
    scale.reshape(shape),
    zero_point,
    format.bits,
    coding,
  )


def dequantize_tensor(q: types.QTensor) -> jax.Array:
  """Returns the real numbers a QTensor stands for, float32."""
  format, layout = formats.FORMATS[q.layout.format], q.layout.blocks
  if not format.scaled:
    return format.decode(q.values)
  shape = q.values.shape
  scale = layouts.scale_to_blocks(q.scale, layout, shape)
  zero_point = q.zero_point
  if zero_point is not None:
    zero_point = layouts.scale_to_blocks(zero_point, layout, shape)
    zero_point = zero_point.astype(jnp.float32)
  codes = layouts.to_blocks(q.values, layout)
  blocks = arithmetic.decode(codes, scale, zero_point, format)
  return layouts.from_blocks(blocks, layout, shape)


def fake_quantize_tensor(
  x: types.Array,
  bits: formats.Bits,
  layout: layouts.Layout,
  *,
  calibration: str | calibrations.Calibration | None = None,
  within: types.Array | None = None,
) -> jax.Array:
  """Rounds x to the numbers its quantized form would stand for.

  Args:
    x: float array.
    bits: a width or format name, or a traced integer of 2 to 8 or 32.
    layout: which entries share a scale.
    calibration: name or function; None = the format's own.
    within: mask of the entries that exist; None = all.

  Returns:
    float32, bit for bit dequantize_tensor(quantize_tensor(x, ...)).
  """
  traced = isinstance(bits, jax.Array)
  if traced:
    format = formats.traced_integer(jnp.clip(bits, 2, 8))
  else:
    name = formats.name_of(bits)
    if name == "float32":
      return jnp.asarray(x)
    format = formats.FORMATS[name]
  if not format.scaled:
    return format.decode(format.encode(jnp.asarray(x, jnp.float32)))
  x = jnp.asarray(x)
  blocks, low, high = _calibrate(x, layout, format, calibration, within)
  rounded = arithmetic.round_trip(blocks, low, high, format)
  rounded = layouts.from_blocks(rounded, layout, x.shape)
  return jnp.where(bits >= 32, x, rounded) if traced else rounded
