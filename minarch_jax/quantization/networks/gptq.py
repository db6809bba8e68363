"""GPTQ on a network: which inputs each kernel sees, layer after layer.

Layers are rounded in the order the network runs them, and each sees its inputs
as the layers before it, rounded already, make them.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


def window_rows(
  y: jax.Array, size: tuple[int, ...], window: types.Window
) -> jax.Array:
  """Writes a convolution's input as the rows its kernel is multiplied with.

  Returns:
    [rows, K], K the kernel's inputs in the order of its axes.
  """
  channels = y.shape[1 if window.channels_first else -1]
  space = "".join("DHW"[-len(size) :])
  ends = (
    ("NC" + space, "OI" + space)
    if window.channels_first
    else (
      f"N{space}C",
      space + "IO",
    )
  )
  patches = jax.lax.conv_general_dilated_patches(
    y,
    size,
    window.strides,
    window.padding,
    rhs_dilation=window.dilation,
    dimension_numbers=(*ends, ends[0]),
  )
  if window.channels_first:
    patches = jnp.moveaxis(patches, 1, -1)
  rows = patches.reshape(-1, channels, math.prod(size))  # channels come first
  if not window.channels_first:
    rows = rows.swapaxes(1, 2)
  return rows.reshape(len(rows), -1)


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
  format = formats.FORMATS[name]
  rule = calibrations.resolve(calibration, format)
  coding = tensors.coding_of(w, name, layout)
  return _quantize(w, rows, within, damping, coding, format, rule)


# Compiled whole, and once for kernels of one shape; as in `tensors`, what names
# stand for is resolved outside.
@functools.partial(jax.jit, static_argnames=("coding", "format", "rule"))
def _quantize(w, rows, within, damping, coding, format, rule) -> types.QTensor:
  shape, layout = w.shape, coding.blocks
  w = jnp.asarray(w, jnp.float32)
  blocks, low, high = tensors.calibrate(w, layout, format, rule, within)
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
    apply: `apply(params, x, tap=tap)` of one network; `ma.tapped(module)` makes
      it of a module of Flax or Equinox.
    params: its parameters.
    x: calibration images [B, ...], never test.
    bits: as for `quantize`.
    granularity: as for `quantize`.
    padding: of 3x3 convolutions at stride 1, SAME or VALID; None = by the
      architectures' rule. Of `ma.tapped` modules every window is known.
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
  shapes = [np.shape(w) for _, w in leaves.named(params) if leaves.is_array(w)]
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
  windows = getattr(apply, "windows", {})
  known = {name: _one_layer(name, axes[paths[name]]) for name in order}
  for name in windows:
    _check_window(name, windows[name])
  done |= {name: rounded[name] for name in by_leaf if name not in order}
  for name in order:
    if not formats.FORMATS[by_leaf[name]].scaled:
      done[name] = rounded[name]
      continue
    # The layers before, rounded already; those after are still as trained.
    now = trees.dequantize(trees.replace_leaves(params, done))
    y = activations.inputs(apply, now, x)[name]
    y, w = y.astype(jnp.float32), jnp.asarray(done[name])
    found, own = known[name], windows.get(name)
    turn = found.inputs + found.outputs
    if own is None:
      shape = tuple(w.shape[i] for i in turn)
      rows = rows_of(y, shape, len(found.inputs), padding)
    else:
      side = found.inputs[1:] if own.channels_first else found.inputs[:-1]
      rows = window_rows(y, tuple(w.shape[i] for i in side), own)
    done[name] = _turned(
      w,
      turn,
      layouts.make_layout(granularity, paths[name], w.shape, found),
      rows=rows,
      name=by_leaf[name],
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
    looked_up = leaves.is_embedding(tuple(name.split("/")))
    kernel = not looked_up and bits != "float32"
    if kernel and name not in seen:
      raise ValueError(
        f"the input of {name!r} is not known, so GPTQ cannot round it: tap it "
        f"in apply, or leave it out with bits={{{name!r}: 32, ...}}; tapped "
        f"are {', '.join(seen)}"
      )


def _one_layer(name: str, axes: leaves.Axes | leaves.Readings) -> leaves.Axes:
  """Raises ValueError for a kernel that holds several layers."""
  found = leaves.known(name, axes)
  if found.stacked:
    raise ValueError(
      f"GPTQ takes kernels of one layer, not {name!r}, whose axes "
      f"{found.stacked} hold several; leave it out with bits={{{name!r}: 32, "
      "...}"
    )
  return found


def _check_window(name: str, window: types.Window) -> None:
  """Raises ValueError for a convolution that is no product with patches."""
  if window.padding is None or window.groups != 1:
    what = "groups" if window.groups != 1 else "its padding or transposition"
    raise ValueError(
      f"GPTQ cannot round the convolution {name!r} because of {what}; leave it "
      f"out with bits={{{name!r}: 32, ...}}"
    )


def _turned(
  w: jax.Array, turn: tuple[int, ...], layout: layouts.Layout, **how: Any
) -> types.QTensor:
  """Quantizes a kernel whose axes, turned so, are [*inputs, *outputs]."""
  place = [turn.index(i) for i in range(w.ndim)]
  within = how.pop("within")
  if within is not None and np.ndim(within):
    within = jnp.transpose(within, turn)
  inner = layouts.Layout(tuple(place[i] for i in layout.inputs), layout.group)
  q = quantize_kernel(w.transpose(turn), layout=inner, within=within, **how)
  stored = layouts.scale_shape(layout, w.shape)
  zero_point = q.zero_point
  return dataclasses.replace(
    q,
    values=q.values.transpose(place),
    scale=q.scale.reshape(stored),
    zero_point=None if zero_point is None else zero_point.reshape(stored),
    layout=dataclasses.replace(q.layout, blocks=layout),
  )


def _options(
  calibration: calibrations.Rule = None,
  within: types.Masks | None = None,
  axes: leaves.Rules | None = None,
) -> dict[str, Any]:
  """Those of `quantize` that GPTQ takes too."""
  return {"calibration": calibration, "within": within, "axes": axes}
