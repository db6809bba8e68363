"""Quantize and dequantize one array: calibrate -> scale -> encode -> decode."""

import dataclasses
import functools
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


def calibrate(
  x: types.Array,
  layout: layouts.Layout,
  format: formats.Format,
  calibration: str | calibrations.Calibration | None,
  within: types.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the blocks of x and the (low, high) that each is coded over."""
  blocks = layouts.to_blocks(jnp.asarray(x, jnp.float32), layout)
  existing = _existing(x.shape, layout, within)
  if existing is not None:
    blocks = jnp.where(existing, blocks, 0.0)
  rule = calibrations.resolve(calibration, format)
  return blocks, *rule(blocks, existing, format)


def resolve_format(bits: formats.Bits) -> formats.Format:
  """Returns the format of a width or name, or of a traced width."""
  if isinstance(bits, jax.Array):
    return formats.traced_integer(jnp.clip(bits, 2, 8))
  return formats.FORMATS[formats.name_of(bits)]


# Compiled whole: one operation after the other takes a second in a notebook.
@functools.partial(jax.jit, static_argnames=("name", "layout", "calibration"))
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
  blocks, low, high = calibrate(x, layout, format, calibration, within)
  scale, zero_point = arithmetic.step_size(low, high, format)
  codes = arithmetic.encode(blocks, scale, zero_point, format)
  return pack_blocks(codes, scale, zero_point, coding, x.shape)


def pack_blocks(
  codes: jax.Array,
  scale: jax.Array,
  zero_point: jax.Array | None,
  coding: Coding,
  shape: tuple[int, ...],
) -> types.QTensor:
  """Makes a QTensor of `shape` from blocks of codes, scales and zero points."""
  format, layout = formats.FORMATS[coding.format], coding.blocks
  stored = layouts.scale_shape(layout, shape)
  if zero_point is not None:
    zero_point = zero_point.astype(jnp.int8).reshape(stored)
  return types.QTensor(
    layouts.from_blocks(codes, layout, shape),
    scale.reshape(stored),
    zero_point,
    format.bits,
    coding,
  )


def check_one(where: str, q: types.QTensor) -> None:
  """Raises ValueError for a QTensor that was mapped over seeds."""
  if q.scale is None:
    return
  shape = np.shape(q.values)
  try:
    expected = layouts.scale_shape(q.layout.blocks, shape)
  except IndexError:  # fewer axes than it was quantized with
    expected = None
  if np.shape(q.scale) != expected:
    raise ValueError(
      f"{where}: values of shape {shape} with scales of shape "
      f"{np.shape(q.scale)} are not one tensor of its layout; it has a leading "
      "axis, as of seeds: use jax.vmap(dequantize)"
    )


@jax.jit
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
  rounds = _fake if isinstance(bits, jax.Array) else _fake_static
  return rounds(x, bits, layout=layout, calibration=calibration, within=within)


def _fake_quantize(x, bits, *, layout, calibration, within):
  format = resolve_format(bits)
  if not format.scaled:
    return format.decode(format.encode(jnp.asarray(x, jnp.float32)))
  x = jnp.asarray(x)
  blocks, low, high = calibrate(x, layout, format, calibration, within)
  rounded = arithmetic.round_trip(blocks, low, high, format)
  rounded = layouts.from_blocks(rounded, layout, x.shape)
  if isinstance(bits, jax.Array):
    return jnp.where(bits >= 32, x, rounded)
  return rounded


_fake = jax.jit(_fake_quantize, static_argnames=("layout", "calibration"))
_fake_static = jax.jit(
  _fake_quantize, static_argnames=("bits", "layout", "calibration")
)


def unclipped_tensor(
  x: types.Array,
  bits: formats.Bits,
  layout: layouts.Layout,
  *,
  calibration: str | calibrations.Calibration | None = None,
  within: types.Array | None = None,
) -> jax.Array:
  """Marks the entries that the calibrated range does not clip.

  A scale by mean magnitude stands for numbers on both sides of it: it clips
  nothing.
  """
  format = resolve_format(bits)
  by_mean = calibration == "mean" or (
    calibration is None and format.calibration == "mean"
  )
  if not format.scaled or by_mean:
    return jnp.ones(x.shape, bool)
  blocks, low, high = calibrate(x, layout, format, calibration, within)
  return layouts.from_blocks(
    (blocks >= low) & (blocks <= high), layout, x.shape
  )
