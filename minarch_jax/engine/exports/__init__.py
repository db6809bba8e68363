"""A network as one file that others run or read.

`exporting` checks a network and writes what a format makes of it; `stablehlo`,
`onnx` (with its `operators`) and `numbers` are the formats, listed in
`registries.EXPORTS`.
"""

from minarch_jax.engine.exports.exporting import export as export
