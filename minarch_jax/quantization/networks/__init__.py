"""Quantization that looks at a whole network, not at one array.

`gptq` rounds so that outputs change least; `lsq` trains the scales; `mixed`
gives layers their own bits; `integer` runs in int8; `joint` puts pruning and
rounding in order; `files` stores a model in exactly `storage_bytes`.
"""

from minarch_jax.quantization.networks import lsq as lsq
