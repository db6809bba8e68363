"""Quantization: from 8 bits to 1 as functions on parameter trees."""

from minarch_jax.quantization.calibration import CALIBRATIONS
from minarch_jax.quantization.formats import FORMATS
from minarch_jax.quantization.trees import dequantize, fake_quantize, quantize

__all__ = [
  "CALIBRATIONS",
  "FORMATS",
  "dequantize",
  "fake_quantize",
  "quantize",
]
