"""Learned step size quantization (Esser et al. 2020, arXiv 1902.08153).

The scale of each channel is trained together with the weights. Steps are a
dict beside the parameters, so what is trained is a pair:

>>> pair = (params, ma.lsq.init_steps(params, bits=2))
>>> grads = jax.grad(
...   lambda pair: loss(ma.lsq.quantize(*pair, bits=2), batch))(pair)
>>> stored = ma.lsq.to_qtensors(*pair, bits=2)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import leaves, types
from minarch_jax.quantization import (
  arithmetic,
  formats,
  layouts,
  straight_through,
  tensors,
  trees,
)

Steps = dict[str, jax.Array]  # by leaf or layer; the shape of its scales

# A tree at a time: a notebook would wait for a program of every operation.
_whole = functools.partial(
  jax.jit, static_argnames=("bits", "granularity", "rules")
)


def _hashable(axes: leaves.Rules | None) -> tuple[tuple[str, str], ...]:
  """Rules of axes as programs are known by."""
  return tuple((axes or {}).items())


def _integer_format(bits: formats.Bits) -> formats.Format:
  format = formats.FORMATS[formats.name_of(bits)]
  if not (format.integer and format.symmetric):
    raise ValueError(
      f"bits {bits!r}: step sizes are learned for symmetric integers of 2 to "
      "8 bits"
    )
  return format


def round_with_step(
  x: jax.Array, step: jax.Array, low: float, high: float, count: int
) -> jax.Array:
  """Rounds x to step * integers in low..high, with LSQ's gradients.

  To x the gradient is 1 inside the range and 0 outside; to the step it is
  round(x/step) - x/step inside and the outermost code outside (equations 3
  and 5), scaled by 1 / sqrt(count * high) (section 2.2).

  Args:
    x: real numbers.
    step: broadcastable to x; its magnitude is used.
    low: lowest code.
    high: highest code.
    count: numbers that share one step.
  """
  share = 1.0 / math.sqrt(count * high)
  step = jnp.maximum(jnp.abs(step), 1e-12)
  # The value of `step` with a fraction of its gradient.
  step = jax.lax.stop_gradient(step) + share * (
    step - jax.lax.stop_gradient(step)
  )
  ratio = jnp.clip(x * (1.0 / step), low, high)
  rounded = straight_through.pass_through(
    ratio, jnp.round(ratio), jnp.ones(ratio.shape, bool)
  )
  return rounded * step


def init_steps(
  params: types.Params,
  bits: formats.Bits,
  granularity: str = "channel",
  *,
  choose: trees.Choose | None = None,
  axes: leaves.Rules | None = None,
) -> Steps:
  """Starts every weight's steps at 2 mean|w| / sqrt(highest code).

  (Section 2.1.) A channel of zeros starts at 1.

  Args:
    params: float parameters of one network.
    bits: 2 to 8.
    granularity: what shares a step.
    choose, axes: as for `ma.quantize`.

  Raises:
    ValueError: bits other than symmetric integers of 2 to 8; axes that are not
      known.
  """
  return _init_steps(params, bits, granularity, choose, _hashable(axes))


@functools.partial(
  jax.jit, static_argnames=("bits", "granularity", "choose", "rules")
)
def _init_steps(params, bits, granularity, choose, rules) -> Steps:
  format = _integer_format(bits)
  steps, named = {}, leaves.named(params)
  choose = choose or leaves.weights(params).__contains__
  axes = leaves.axes_of(named, dict(rules))
  for path, leaf in named:
    if choose(path):
      layout = layouts.make_layout(granularity, path, leaf.shape, axes[path])
      blocks = jnp.abs(layouts.to_blocks(jnp.asarray(leaf), layout))
      # A group's padding is zeros and must not count.
      count = jnp.maximum(jnp.sum(blocks > 0, 1), 1)
      mean = jnp.sum(blocks, 1) / count
      step = jnp.where(mean > 0, 2 * mean / math.sqrt(format.high), 1.0)
      shape = layouts.scale_shape(layout, leaf.shape)
      steps["/".join(path)] = step.reshape(shape)
  return steps


def quantize(
  params: types.Params,
  steps: Steps,
  bits: formats.Bits,
  granularity: str = "channel",
  *,
  axes: leaves.Rules | None = None,
) -> types.Params:
  """Rounds the weights that have steps; differentiable in both.

  Args:
    params: float parameters of one network.
    steps: from `init_steps` with the same bits, granularity and axes.
    bits: 2 to 8.
    granularity: what shares a step.
    axes: as for `ma.quantize`.
  """
  return _quantize(params, steps, bits, granularity, _hashable(axes))


@_whole
def _quantize(params, steps, bits, granularity, rules) -> types.Params:
  format = _integer_format(bits)

  def change(leaf, name, layout, step):
    del name
    blocks = layouts.to_blocks(leaf, layout)
    step = layouts.scale_to_blocks(step, layout, leaf.shape)
    low, high = format.low, format.high
    rounded = round_with_step(blocks, step, low, high, blocks.shape[1])
    rounded = layouts.from_blocks(rounded, layout, leaf.shape)
    return rounded.astype(leaf.dtype)

  return _map_steps(change, params, steps, granularity, rules)


def to_qtensors(
  params: types.Params,
  steps: Steps,
  bits: formats.Bits,
  granularity: str = "channel",
  *,
  axes: leaves.Rules | None = None,
) -> types.Params:
  """Stores a trained network as QTensors with its learned scales.

  `dequantize` of the result equals `quantize` here, whose arguments it takes.
  """
  return _to_qtensors(params, steps, bits, granularity, _hashable(axes))


@_whole
def _to_qtensors(params, steps, bits, granularity, rules) -> types.Params:
  format = _integer_format(bits)

  def change(leaf, name, layout, step):
    del name
    step = layouts.scale_to_blocks(step, layout, leaf.shape)
    step = jnp.maximum(jnp.abs(step), 1e-12)
    blocks = layouts.to_blocks(leaf, layout)
    codes = arithmetic.encode(blocks, step, None, format)
    coding = tensors.coding_of(leaf, formats.name_of(bits), layout)
    return tensors.pack_blocks(codes, step, None, coding, leaf.shape)

  return _map_steps(change, params, steps, granularity, rules)


def _map_steps(change, params, steps, granularity, rules) -> Any:
  """Applies change(leaf, name, layout, step) where there is a step."""
  changed, named = [], leaves.named(params)
  axes = leaves.axes_of(named, dict(rules))
  for path, leaf in named:
    name = "/".join(path)
    if name in steps:
      layout = layouts.make_layout(granularity, path, leaf.shape, axes[path])
      leaf = change(jnp.asarray(leaf), name, layout, steps[name])
    changed.append(leaf)
  return jax.tree.unflatten(jax.tree.structure(params), changed)


def init_activation_steps(
  layer_inputs: dict[str, jax.Array], bits: formats.Bits
) -> tuple[Steps, dict[str, bool]]:
  """Starts one step for each layer's input, and says which are signed.

  Args:
    layer_inputs: from `activations.inputs`, outside jit.
    bits: 2 to 8.

  Returns:
    Scalar steps by layer, and whether a layer's input has negative numbers.
  """
  _integer_format(bits)
  signed = {name: bool(jnp.min(y) < 0) for name, y in layer_inputs.items()}
  steps = {}
  for name, y in layer_inputs.items():
    _, high = _activation_codes(int(bits), signed[name])
    mean = jnp.mean(jnp.abs(y.astype(jnp.float32)))
    steps[name] = jnp.where(mean > 0, 2 * mean / math.sqrt(high), 1.0)
  return steps, signed


def _activation_codes(bits: int, signed: bool) -> tuple[float, float]:
  if signed:
    return float(-(2 ** (bits - 1))), float(2 ** (bits - 1) - 1)
  return 0.0, float(2**bits - 1)


def make_tap(steps: Steps, signed: dict[str, bool], bits: int) -> types.Tap:
  """Makes the tap that rounds activations with learned steps.

  Codes are 0..2**bits - 1 where inputs are never negative (after ReLU), else
  -2**(bits-1)..2**(bits-1) - 1.
  """

  def tap(name: str, y: jax.Array) -> jax.Array:
    low, high = _activation_codes(bits, signed[name])
    x = y.astype(jnp.float32)
    count = math.prod(y.shape[1:])  # features, as in section 2.2
    return round_with_step(x, steps[name], low, high, count).astype(y.dtype)

  return tap
