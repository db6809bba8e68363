"""Number formats: what codes exist, and which real number each stands for.

A format knows nothing of ranges or layouts: it maps real numbers in units of a
scale ("steps") to codes and back. int8, nf4 and float8 differ in nothing else.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import registries, types

Bits = Any  # 8, "int8", "nf4", or a traced integer width


@dataclasses.dataclass(frozen=True)
class Format:
  """One set of codes.

  Attributes:
    bits: bits one stored code takes.
    low: the lowest number a code stands for, in steps, before the zero point.
    high: the highest one.
    gap: the widest distance between neighbouring numbers inside the range, in
      steps: rounding errs by at most gap / 2 there.
    encode: real numbers in steps -> the nearest codes; saturates.
    decode: codes -> real numbers in steps, exact in float32.
    to_raw: codes -> unsigned integers below 2**bits, for packing.
    from_raw: its inverse.
    scaled: whether a scale maps the range to low..high; a format that carries
      its own exponent needs none.
    symmetric: whether code 0 stands for 0; otherwise a zero point does.
    calibration: the calibration used when none is named.
    packs_zero: whether a raw code exists for the real number 0.
    integer: whether codes are the integers low..high themselves.
    width: the plain number of bits that means this format; of weights where it
      is symmetric, of activations where it is not.
  """

  bits: Any
  low: Any
  high: Any
  gap: float
  encode: Callable[[types.Array], Any]
  decode: Callable[[types.Array], Any]
  to_raw: Callable[[types.Array], Any]
  from_raw: Callable[[types.Array], Any]
  scaled: bool = True
  symmetric: bool = True
  calibration: str = "absmax"
  packs_zero: bool = True
  integer: bool = False
  width: int | None = None


def _to_float(codes):
  return codes.astype(jnp.float32)


def _range(bits: Any, symmetric: bool) -> tuple[Any, Any]:
  """Lowest and highest integer code; symmetric ones leave -2**(bits-1) out."""
  half = 1 << (bits - 1)
  return (1 - half if symmetric else -half), half - 1


def _integer(bits: int, *, symmetric: bool = True) -> Format:
  low, high = map(float, _range(bits, symmetric))
  offset = 1 << (bits - 1)
  return Format(
    bits,
    low,
    high,
    1.0,
    # Casts truncate toward zero, so round first.
    lambda steps: jnp.clip(jnp.round(steps), low, high).astype(jnp.int8),
    _to_float,
    lambda codes: (codes.astype(jnp.int32) + offset).astype(jnp.uint8),
    lambda raw: (raw.astype(jnp.int32) - offset).astype(jnp.int8),
    symmetric=symmetric,
    integer=True,
    width=bits,
  )


def traced_integer(bits: types.Array, *, symmetric: bool = True) -> Format:
  """Makes the integer format of a traced width of 2 to 8 bits.

  Its codes stay float32, where they are exact; only fake quantization, which
  stores nothing, uses it.
  """
  low, high = (
    jnp.asarray(bound, jnp.float32) for bound in _range(bits, symmetric)
  )
  return Format(
    bits,
    low,
    high,
    1.0,
    lambda steps: jnp.clip(jnp.round(steps), low, high),
    _to_float,
    lambda codes: (codes - low).astype(jnp.uint8),
    lambda raw: raw + low,
    symmetric=symmetric,
  )


def _binary() -> Format:
  """Codes -1 and 1. An exact 0 keeps code 0, which one bit cannot pack."""
  return Format(
    1,
    -1.0,
    1.0,
    2.0,
    lambda steps: jnp.sign(steps).astype(jnp.int8),
    _to_float,
    lambda codes: (codes > 0).astype(jnp.uint8),
    lambda raw: 2 * raw.astype(jnp.int8) - 1,
    calibration="mean",
    packs_zero=False,
    width=1,
  )


# Quantiles of the normal distribution scaled to [-1, 1] with an exact zero:
# the values of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E).
NF4_LEVELS = np.array(
  [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
  ],
  np.float32,
)


def table(levels: np.ndarray, bits: int) -> Format:
  """Codes are indices into a sorted table of numbers."""
  borders = (levels[1:] + levels[:-1]) / 2

  def encode(steps):
    # Comparing with every border is elementwise and fuses; a binary search
    # does not.
    codes = jnp.zeros(steps.shape, jnp.int8)
    for border in borders:
      codes += (steps > border).astype(jnp.int8)
    return codes

  return Format(
    bits,
    float(levels[0]),
    float(levels[-1]),
    float(np.max(np.diff(levels))),
    encode,
    lambda codes: jnp.asarray(levels)[codes.astype(jnp.int32)],
    lambda codes: codes.astype(jnp.uint8),
    lambda raw: raw.astype(jnp.int8),
  )


def _float(dtype: Any, *, scaled: bool = False) -> Format:
  """A float type. It saturates: plain casts overflow to infinity or NaN."""
  info = jnp.finfo(dtype)
  largest = float(info.max)
  raw = jnp.dtype(f"uint{info.bits}")
  return Format(
    info.bits,
    -largest,
    largest,
    # The spacing in the highest binade.
    float(2.0 ** np.floor(np.log2(largest)) * float(info.eps)),
    lambda steps: jnp.clip(steps, -largest, largest).astype(dtype),
    _to_float,
    lambda codes: jax.lax.bitcast_convert_type(codes, raw),
    lambda codes: jax.lax.bitcast_convert_type(codes, dtype),
    scaled=scaled,
  )


# float32 is the neutral element: weights as trained.
FLOAT32 = dataclasses.replace(_float(jnp.float32), width=32)
BFLOAT16 = _float(jnp.bfloat16)
FLOAT16 = _float(jnp.float16)
FLOAT8_E4M3 = _float(jnp.float8_e4m3fn, scaled=True)
FLOAT8_E5M2 = _float(jnp.float8_e5m2, scaled=True)
# The signed integers are symmetric, the unsigned ones have a zero point.
INT8, INT6, INT5 = _integer(8), _integer(6), _integer(5)
INT4, INT3, INT2 = _integer(4), _integer(3), _integer(2)
UINT8 = _integer(8, symmetric=False)
UINT6 = _integer(6, symmetric=False)
UINT5 = _integer(5, symmetric=False)
UINT4 = _integer(4, symmetric=False)
UINT3 = _integer(3, symmetric=False)
UINT2 = _integer(2, symmetric=False)
NF4 = table(NF4_LEVELS, 4)
# The three levels of two symmetric bits, with a scale by mean magnitude.
TERNARY = dataclasses.replace(INT2, calibration="mean", width=None)
BINARY = _binary()
FORMATS = registries.FORMATS


def widths(symmetric: bool = True) -> dict[int, str]:
  """Says which format each plain number of bits means."""
  return {
    format.width: name
    for name, format in FORMATS.items()
    if format.width is not None and format.symmetric == symmetric
  }


def as_trained(leaf: Any) -> Format | None:
  """The format in which an array is stored that is not quantized, if any."""
  found = FORMATS.get(str(leaf.dtype))
  return None if found is None or found.scaled else found


def name_of(bits: Bits) -> str:
  """Returns the registry name of a static width or format name.

  Raises:
    ValueError: neither a known width nor a known name.
  """
  if isinstance(bits, str) and bits in FORMATS:
    return bits
  number = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
  known = widths()
  if number or (isinstance(bits, str) and bits.isdecimal()):
    if int(bits) in known:
      return known[int(bits)]
  raise ValueError(
    f"bits {bits!r} is not one of {', '.join(map(str, known))} or "
    f"{', '.join(FORMATS)}{registries.nearest(bits, FORMATS)}"
  )
