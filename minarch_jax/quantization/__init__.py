"""Quantization of any parameter tree, from 8 bits to 1, as pure functions.

One decomposition: calibrate (`CALIBRATIONS`: which range) -> scale -> encode
to codes (`FORMATS`: which numbers) -> decode. `quantize` stores, and
`fake_quantize` rounds with the same arithmetic under traced bits; both work on
one tree and map over seeds and networks with `jax.vmap`.

Beyond weights: `activations` rounds the inputs of layers through the models'
tap, which `taps` makes of anybody's; `straight_through` trains with rounding
in the loss; `rounding` holds several formats in one program; `storage` counts
bytes and `cost` what else a network costs; `networks` holds what looks at a
whole network.
"""

from minarch_jax.quantization.activations import calibrate as calibrate
from minarch_jax.quantization.activations import make_tap as make_tap
from minarch_jax.quantization.calibration import CALIBRATIONS as CALIBRATIONS
from minarch_jax.quantization.formats import FORMATS as FORMATS
from minarch_jax.quantization.rounding import format_of as format_of
from minarch_jax.quantization.rounding import make_rounder as make_rounder
from minarch_jax.quantization.rounding import Rounding as Rounding
from minarch_jax.quantization.storage import count_nonzeros as count_nonzeros
from minarch_jax.quantization.storage import grid_bytes as grid_bytes
from minarch_jax.quantization.storage import storage_bytes as storage_bytes
from minarch_jax.quantization.trees import dequantize as dequantize
from minarch_jax.quantization.trees import fake_quantize as fake_quantize
from minarch_jax.quantization.trees import quantize as quantize
