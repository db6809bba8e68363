"""Quantize and dequantize one array: calibrate -> scale -> encode -> decode."""

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from minarch_jax import types
from minarch_jax.quantization import arithmetic, formats, layouts, packing
from minarch_jax.quantization import calibration as calibrations


@dataclasses.dataclass(frozen=True)
class Coding:
  """The static `layout` of a QTensor: its format, its blocks, and the type it
  had and is given back in. What a QTensor does, its coding does for it."""

  format: str
  blocks: layouts.Layout
  dtype: str = "float32"

  def dequantize(self, q: types.QTensor, dtype: Any = None) -> jax.Array:
    check_one("QTensor", q)
    return dequantize_tensor(q, dtype)

  def pack(self, q: types.QTensor) -> types.QTensor:
    check_one("QTensor", q)
    return pack_tensor(q)

  def unpack(self, q: types.QTensor) -> types.QTensor:
    return unpack_tensor(q)

  def describe(self) -> dict[str, Any]:
    """Describes it in what JSON knows; `read_coding` inverts it."""
    described: dict[str, Any] = {
      "format": self.format,
      "inputs": list(self.blocks.inputs),
      "group": self.blocks.group,
    }
    if self.dtype != "float32":
      described["dtype"] = self.dtype
    return described


def read_coding(described: Mapping[str, Any]) -> Coding:
  """Reads what `Coding.describe` wrote, among other things perhaps."""
  blocks = layouts.Layout(tuple(described["inputs"]), described["group"])
  dtype = described.get("dtype", "float32")
  return Coding(described["format"], blocks, dtype)


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
  calibration: calibrations.Rule,
  within: types.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the blocks of x and the (low, high) that each is coded over."""
  blocks = layouts.to_blocks(jnp.asarray(x, jnp.float32), layout)
  existing = _existing(x.shape, layout, within)
  if existing is not None:
    blocks = jnp.where(existing, blocks, 0.0)
  rule = calibrations.resolve(calibration, format)
  return blocks, *rule.find(blocks, existing, format)


def resolve_format(bits: formats.Bits) -> formats.Format:
  """Returns the format of a width or name, or of a traced width."""
  if isinstance(bits, jax.Array):
    return formats.traced_integer(jnp.clip(bits, 2, 8))
  return formats.FORMATS[formats.name_of(bits)]


def coding_of(x: types.Array, name: str, layout: layouts.Layout) -> Coding:
  """Describes how x is stored in the named format."""
  return Coding(name, layout, str(jnp.result_type(x)))


def quantize_tensor(
  x: types.Array,
  name: str,
  layout: layouts.Layout,
  *,
  calibration: calibrations.Rule = None,
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
  format = formats.FORMATS[name]
  rule = calibrations.resolve(calibration, format)
  return _quantize(x, within, coding_of(x, name, layout), format, rule)


# Compiled whole: one operation after the other takes a second in a notebook.
# What names stand for is resolved outside, so that a name registered anew does
# not find the program of the old one.
@functools.partial(jax.jit, static_argnames=("coding", "format", "rule"))
def _quantize(x, within, coding, format, rule) -> types.QTensor:
  if not format.scaled:
    codes = format.encode(jnp.asarray(x, jnp.float32))
    return types.QTensor(codes, None, None, format.bits, coding)
  blocks, low, high = calibrate(x, coding.blocks, format, rule, within)
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
  shape = q.shape
  try:
    expected = layouts.scale_shape(q.layout.blocks, shape)
  except IndexError:  # fewer axes than it was quantized with
    expected = None
  if np.shape(q.scale) != expected:
    raise ValueError(
      f"{where}: values of shape {shape} with scales of shape "
      f"{np.shape(q.scale)} are not one tensor of its layout; it has a leading "
      "axis, as of seeds: use jax.vmap to map over it"
    )


def dequantize_tensor(q: types.QTensor, dtype: Any = None) -> jax.Array:
  """Returns the real numbers a QTensor stands for.

  Args:
    q: packed or not.
    dtype: of the result; None = the original's.
  """
  dtype = str(jnp.dtype(dtype or q.layout.dtype))
  return _dequantize(q, formats.FORMATS[q.layout.format], dtype)


@functools.partial(jax.jit, static_argnames=("format", "dtype"))
def _dequantize(q, format, dtype) -> jax.Array:
  q = unpack_tensor(q)
  layout = q.layout.blocks
  if not format.scaled:
    return format.decode(q.values).astype(dtype)
  scale, zero_point, shape = q.scale, q.zero_point, q.values.shape
  if zero_point is not None:
    zero_point = zero_point.astype(jnp.float32)
  if not layout.group:  # they broadcast as they are
    numbers = arithmetic.decode(q.values, scale, zero_point, format)
    return numbers.astype(dtype)
  scale = layouts.scale_to_blocks(scale, layout, shape)
  if zero_point is not None:
    zero_point = layouts.scale_to_blocks(zero_point, layout, shape)
  codes = layouts.to_blocks(q.values, layout)
  blocks = arithmetic.decode(codes, scale, zero_point, format)
  return layouts.from_blocks(blocks, layout, shape).astype(dtype)


# --- packed ------------------------------------------------------------------


def pack_tensor(q: types.QTensor) -> types.QTensor:
  """Packs codes of fewer than 8 bits into bytes; see `types.QTensor.pack`."""
  format = formats.FORMATS[q.layout.format]
  if q.packed is not None or format.bits >= 8 or not format.packs_zero:
    return q
  shape = q.shape
  values = packing.pack(format.to_raw(q.values), format.bits)
  return dataclasses.replace(q, values=values, packed=shape)


def unpack_tensor(q: types.QTensor) -> types.QTensor:
  """Inverts `pack_tensor`."""
  if q.packed is None:
    return q
  format = formats.FORMATS[q.layout.format]
  raw = packing.unpack(q.values, format.bits, math.prod(q.packed))
  values = format.from_raw(raw).reshape(q.packed)
  return dataclasses.replace(q, values=values, packed=None)


def fake_quantize_tensor(
  x: types.Array,
  bits: formats.Bits,
  layout: layouts.Layout,
  *,
  calibration: calibrations.Rule = None,
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
    Bit for bit dequantize_tensor(quantize_tensor(x, ...)), of x's type. The
    gradient goes straight through, to x alone; see `trees.fake_quantize`.
  """
  traced = isinstance(bits, jax.Array)
  format = None if traced else resolve_format(bits)
  rule = calibrations.resolve(calibration, format or formats.INT8)
  return _fake(x, bits if traced else None, within, layout, format, rule)


# Of `bits`, traced, and `format` one is None.
@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
@functools.partial(jax.jit, static_argnames=("layout", "format", "rule"))
def _fake(x, bits, within, layout, format, rule) -> jax.Array:
  x = jnp.asarray(x)
  format = format or resolve_format(bits)
  if not format.scaled:
    return format.decode(format.encode(x.astype(jnp.float32))).astype(x.dtype)
  blocks, low, high = calibrate(x, layout, format, rule, within)
  rounded = arithmetic.round_trip(blocks, low, high, format)
  rounded = layouts.from_blocks(rounded, layout, x.shape).astype(x.dtype)
  return rounded if bits is None else jnp.where(bits >= 32, x, rounded)


@_fake.defjvp
def _straight_through(layout, format, rule, primals, tangents):
  """Rounds as ever; the derivative is 1, or 0 where the range clips."""
  x, bits, within = primals
  tangent, *_ = tangents
  rounded = _fake(*primals, layout, format, rule)
  format = format or resolve_format(bits)
  if format.scaled and rule.clips:
    blocks, low, high = calibrate(x, layout, format, rule, within)
    passes = (blocks >= low) & (blocks <= high)
    passes = layouts.from_blocks(passes, layout, x.shape)
    if bits is not None:
      passes = passes | (bits >= 32)
    tangent = jnp.where(passes, tangent, jnp.zeros_like(tangent))
  return rounded, tangent


# --- registered --------------------------------------------------------------


def _write_static(static: tuple[Any, ...]) -> bytes:
  """Writes what of a QTensor is no array: bits, layout, packed."""
  bits, layout, packed = static
  described = layout.describe() | {"bits": bits, "packed": packed}
  return json.dumps(described).encode()


def _read_static(data: bytes | bytearray) -> tuple[Any, ...]:
  described = json.loads(data)
  packed = described["packed"]
  packed = None if packed is None else tuple(packed)
  return described["bits"], read_coding(described), packed


# So that a function of quantized parameters can be exported as it is.
export.register_pytree_node_serialization(
  types.QTensor,
  serialized_name="minarch_jax.QTensor",
  serialize_auxdata=_write_static,
  deserialize_auxdata=_read_static,
)
