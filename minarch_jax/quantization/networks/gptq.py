"""GPTQ on a network: which inputs each kernel sees, layer after layer.

Layers are rounded in the order the network runs them, and each sees its inputs
as the layers before it, rounded already, make them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import leaves, registries, types
from minarch_jax.quantization import (
  activations,
  arithmetic,
  formats,
  layouts,
  tensors,
  trees,
)
from minarch_jax.quantization import calibration as calibrations
from minarch_jax.quantization.networks import gptq_core, integer_core

# Inputs whose correlations are kept together. A kernel with more is cut into
# such blocks: a Hessian of all 21,632 inputs of cnn:32 would be 1.9 GB.
_BLOCK = 1024


def rows_of(
  y: jax.Array, shape: tuple[int, ...], inputs: int, padding: str
) -> jax.Array:
  """Writes a layer's input as the rows its kernel is multiplied with.

  Args:
    y: the layer's input, [B, H, W, C] for a 3x3 convolution, else ending in
      the kernel's input axes.
    shape: the kernel's shape.
    inputs: number of its input axes, which come first.
    padding: SAME or VALID, for convolutions.

  Returns:
    [rows, K], K the kernel's inputs in row-major order.
  """
  if len(shape) == 4:
    y = integer_core.patches(y, shape[:2], padding)
    return y.reshape(-1, y.shape[-1])
  if y.shape[y.ndim - inputs :] != shape[:inputs]:
    raise ValueError(
      f"an input of shape {y.shape} does not fit a kernel of shape {shape}, "
      f"of which the first {inputs} axes are the inputs"
    )
  return y.reshape(-1, math.prod(shape[:inputs]))


def hessians(rows: jax.Array, block: int) -> jax.Array:
  """Returns X^T X / rows of each block of inputs: [blocks, block, block]."""
  rows = jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % block)))
  rows = rows.reshape(rows.shape[0], -1, block)
  return jnp.einsum("rbi,rbj->bij", rows, rows) / rows.shape[0]


def quantize_kernel(
  w: types.Array,
  rows: jax.Array,
  name: str,
  layout: layouts.Layout,
  *,
  damping: float = 0.01,
  calibration: calibrations.Rule = None,
  within: types.Array | None = None,
) -> types.QTensor:
  """Quantizes one kernel by GPTQ, on scales calibrated beforehand.

  Args:
    w: the kernel; weights of exactly 0 stay 0.
    rows: [R, K] inputs, from `rows_of`.
    name: a scaled format of FORMATS.
    layout: what shares a scale.
    damping: as in `gptq_core.compensation`.
    calibration: as for `quantize`.
    within: mask of the entries that exist; None = all.
  """
  format, shape = formats.FORMATS[name], w.shape
  coding = tensors.coding_of(w, name, layout)
  w = jnp.asarray(w, jnp.float32)
  blocks, low, high = tensors.calibrate(w, layout, format, calibration, within)
  scale, zero_point = arithmetic.step_size(low, high, format)
  inputs = rows.shape[1]
  size = min(_BLOCK, inputs)

  def matrix(values, filler):
    """A number for each weight as [blocks, size, outputs]."""
    full = jnp.broadcast_to(values, blocks.shape)
    full = layouts.from_blocks(full, layout, shape).reshape(inputs, -1)
    margin = ((0, -inputs % size), (0, 0))
    full = jnp.pad(full, margin, constant_values=filler)
    return full.reshape(-1, size, full.shape[1])

  weights, scales = matrix(blocks, 0.0), matrix(scale, 1.0)
  zeros = None if zero_point is None else matrix(zero_point, 0.0)
  exists = None
  if within is not None:
    exists = jnp.broadcast_to(jnp.asarray(within) != 0, shape)
    exists = jnp.any(exists.reshape(inputs, -1), 1)
    exists = jnp.pad(exists, (0, -inputs % size)).reshape(-1, size)

  def one_block(weights, hessian, scales, zeros, exists):
    absent = weights == 0

    def round_row(i, row):
      zero = None if zeros is None else zeros[i]
      codes = arithmetic.encode(row, scales[i], zero, format)
      rounded = arithmetic.decode(codes, scales[i], zero, format)
      return jnp.where(absent[i], 0.0, rounded)

    moved = gptq_core.round_rows(weights, hessian, round_row, damping, exists)
    return jnp.where(absent, 0.0, moved)

  moved = jax.vmap(one_block)(
    weights, hessians(rows, size), scales, zeros, exists
  )
  moved = moved.reshape(-1, moved.shape[2])[:inputs].reshape(shape)
  codes = arithmetic.encode(
    layouts.to_blocks(moved, layout), scale, zero_point, format
  )
  return tensors.pack_blocks(codes, scale, zero_point, coding, shape)


def gptq(
  apply: activations.Apply,
  params: types.Params,
  x: types.Array,
  bits: trees.TreeBits,
  granularity: str = "channel",
  *,
  padding: str | None = None,
  damping: float = 0.01,
  **options: Any,
) -> types.Params:
  """Quantizes weights so that layer outputs, not weights, change least.

  >>> quantized = ma.gptq(model.apply, params, x, bits=3)
  >>> logits = model.apply(ma.dequantize(quantized), x)
  >>> logits.shape
  (9, 3)

  Kernels whose input the tap shows are rounded by GPTQ, other weights
  (embeddings) to nearest.

  Args:
    apply: `apply(params, x, tap=tap)` of one network.
    params: its parameters.
    x: [B, H, W, C] calibration images, never test.
    bits: as for `quantize`.
    granularity: as for `quantize`.
    padding: of convolutions, SAME or VALID; None = by the architectures'
      rule.
    damping: share of the mean diagonal added to each Hessian.
    **options: calibration, within, axes, as for `quantize`. A network inside a
      wider parent rounds as alone, up to the order of sums, where a kernel has
      at most 1,024 inputs; wider ones are cut at other places.

  Returns:
    The tree with QTensor leaves, as `quantize` gives it.

  Raises:
    ValueError: as for `quantize`; an empty batch; a kernel whose input the
      network does not show.
  """
  shapes = [leaf.shape for _, leaf in leaves.named(params)]
  padding = padding or integer_core.padding_rule(shapes)
  by_leaf = trees.bits_by_leaf(params, bits)
  options = _options(**options)
  # Nearest rounding of all; then one layer after another is done better.
  nearest = trees.quantize(params, bits, granularity, **options)
  rounded = dict(trees.leaves_with_names(nearest))
  done = dict(trees.leaves_with_names(params))
  exists = dict(trees.leaves_with_names(options["within"] or {}))
  order = list(activations.inputs(apply, params, x))
  _check_taps(order, by_leaf)
  axes = leaves.axes_of(leaves.named(params), options["axes"])
  paths = {"/".join(path): path for path in axes}
  inputs = _inputs({name: axes[paths[name]] for name in order})
  done |= {name: rounded[name] for name in by_leaf if name not in order}
  for name in order:
    if not formats.FORMATS[by_leaf[name]].scaled:
      done[name] = rounded[name]
      continue
    # The layers before, rounded already; those after are still as trained.
    now = trees.dequantize(trees.replace_leaves(params, done))
    y = activations.inputs(apply, now, x)[name]
    w, path = done[name], paths[name]
    done[name] = quantize_kernel(
      w,
      rows_of(y.astype(jnp.float32), w.shape, inputs[name], padding),
      by_leaf[name],
      layouts.make_layout(granularity, path, w.shape, axes[path]),
      damping=damping,
      calibration=options["calibration"],
      within=exists.get(name),
    )
  return trees.replace_leaves(params, done)


def _check_taps(seen: list[str], by_leaf: dict[str, formats.Bits]) -> None:
  """Raises ValueError where taps and kernels do not meet."""
  for name in seen:
    if name not in by_leaf:
      raise ValueError(
        f"apply taps the input of {name!r}, which is no quantized leaf"
        f"{registries.nearest(name, by_leaf)}; they are {', '.join(by_leaf)}"
      )
  for name, bits in by_leaf.items():
    kernel = not name.endswith("embedding") and bits != "float32"
    if kernel and name not in seen:
      raise ValueError(
        f"the input of {name!r} is not known, so GPTQ cannot round it: tap it "
        f"in apply, or leave it out with bits={{{name!r}: 32, ...}}; tapped "
        f"are {', '.join(seen)}"
      )


def _inputs(axes: dict[str, Any]) -> dict[str, int]:
  """Counts the input axes of kernels, with which they must begin.

  Raises:
    ValueError: a kernel does not.
  """
  numbers = {}
  for name, found in axes.items():
    found = leaves.known(name, found)
    if found.inputs != tuple(range(len(found.inputs))):
      raise ValueError(
        f"GPTQ takes kernels [*inputs, *outputs] of one layer, not {name!r}, "
        f"of which axes {found.inputs} are the inputs; leave it out with "
        f"bits={{{name!r}: 32, ...}}"
      )
    numbers[name] = len(found.inputs)
  return numbers


def _options(
  calibration: calibrations.Rule = None,
  within: types.Masks | None = None,
  axes: leaves.Rules | None = None,
) -> dict[str, Any]:
  """Those of `quantize` that GPTQ takes too."""
  return {"calibration": calibration, "within": within, "axes": axes}
