"""Roundings as data: many formats of one grid in one compiled program.

Integer widths are traced, so they share a branch; every other format, each
granularity and each calibration is a branch of its own, chosen by number.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from minarch_jax import types
from minarch_jax.quantization import calibration as calibrations
from minarch_jax.quantization import formats, trees

NEAREST = "nearest"


class Rounding(NamedTuple):
  """One column of a grid.

  Attributes:
    format: "int" for the symmetric integers, whose width is an argument; else
      a name of FORMATS, whose width is its own.
    granularity: "tensor", "channel" or "group:G".
    calibration: a name of CALIBRATIONS; None = the format's own.
    method: "nearest", or a name of `registries.METHODS`, which moves weights
      so that what is rounded to the same numbers fits the whole network.
  """

  format: str = "int"
  granularity: str = "channel"
  calibration: str | None = None
  method: str = NEAREST

  @property
  def quantizer(self) -> str:
    """Its name in tables: the method, the format, or the calibration of
    integers."""
    if self.method != NEAREST:
      return self.method
    if self.format != "int":
      return self.format
    return self.calibration or "absmax"


def format_of(rounding: Rounding) -> formats.Format:
  """Returns the format; "int" is that of 8 bits, alike but for the width."""
  name = "int8" if rounding.format == "int" else rounding.format
  return formats.FORMATS[formats.name_of(name)]


Rounder = Callable[..., types.Params]


def make_rounder(roundings: Sequence[Rounding]) -> Rounder:
  """Makes `rounder(params, index, bits, within=None) -> params`.

  `index` chooses the rounding and `bits` (2 to 8, or 32 for the identity) the
  width of an "int" one; both may be traced. Mapped over seeds with one index
  for all, the choice stays a branch. `within` is as in `quantize`.

  Raises:
    ValueError: no roundings, or an unknown format or calibration.
  """
  if not roundings:
    raise ValueError("no roundings; name at least one")
  rules = [calibrations.resolve(r.calibration, format_of(r)) for r in roundings]

  def rounder(params, index, bits, within=None):
    def branch(rounding, rule):
      # To the other calibrations a 0 outside is no number: they need no work.
      masks = within if rule.masked else None
      return lambda tree: trees.fake_quantize(
        tree,
        bits if rounding.format == "int" else rounding.format,
        rounding.granularity,
        calibration=rule,
        within=masks,
      )

    branches = list(map(branch, roundings, rules))
    return jax.lax.switch(index, branches, params)

  return rounder
