"""Quantization of any parameter tree, from 8 bits to 1, as pure functions.

One decomposition: calibrate (`CALIBRATIONS`: which range) -> scale -> encode
to codes (`FORMATS`: which numbers) -> decode. `quantize` stores, and
`fake_quantize` rounds with the same arithmetic under traced bits; both work on
one tree and map over seeds and networks with `jax.vmap`.

Beyond weights: `activations` rounds the inputs of layers through the models'
tap; `straight_through` and `lsq` train with rounding in the loss; `gptq` rounds
so that outputs change least; `integer_networks` runs in int8; `mixed` gives
layers their own bits; `joint` puts pruning and rounding in order; `rounding`
holds several formats in one program; `save` and `load` are files of exactly
`storage_bytes`.
"""

from minarch_jax.quantization import gptq as gptq
from minarch_jax.quantization import integer_networks as integer_networks
from minarch_jax.quantization import lsq as lsq
from minarch_jax.quantization import straight_through as straight_through
from minarch_jax.quantization.activations import calibrate as calibrate
from minarch_jax.quantization.activations import make_tap as make_tap
from minarch_jax.quantization.calibration import CALIBRATIONS as CALIBRATIONS
from minarch_jax.quantization.files import load as load
from minarch_jax.quantization.files import save as save
from minarch_jax.quantization.formats import FORMATS as FORMATS
from minarch_jax.quantization.joint import ORDERS as ORDERS
from minarch_jax.quantization.mixed import allocate as allocate
from minarch_jax.quantization.mixed import sensitivity as sensitivity
from minarch_jax.quantization.rounding import format_of as format_of
from minarch_jax.quantization.rounding import make_rounder as make_rounder
from minarch_jax.quantization.rounding import Rounding as Rounding
from minarch_jax.quantization.storage import count_nonzeros as count_nonzeros
from minarch_jax.quantization.storage import storage_bytes as storage_bytes
from minarch_jax.quantization.trees import dequantize as dequantize
from minarch_jax.quantization.trees import fake_quantize as fake_quantize
from minarch_jax.quantization.trees import quantize as quantize
