"""Turns a pruned network into a smaller dense one with equal outputs.

A unit goes when nothing reads it (its outgoing weights are all zero), or when
its output is constant (its incoming weights are all zero, so only its bias
counts): what the constant contributes is then added to the next layer's bias.
One unit per axis always stays. The residual stream of a ViT keeps its width,
since LayerNorm's statistics depend on it.
"""

import dataclasses
import math
from typing import Any

from flax import traverse_util
import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from minarch_jax.architectures import Architecture, Problem
from minarch_jax.pruning import masks as masking
from minarch_jax.pruning import trees
from minarch_jax.types import Masks, Params

Flat = dict[tuple[str, ...], np.ndarray]  # float64, changed in place


def compact(
  architecture: Architecture, params: Params, masks: Masks | None = None
) -> tuple[Architecture, Params]:
  """Removes units that do not matter: neurons, channels, heads, MLP units.

  >>> masks = ma.prune(params, 0.5, granularity="unit", spec=spec)
  >>> smaller, few = ma.compact(architecture, params, masks)
  >>> str(smaller)
  'dnn:3'

  Works for unit masks and for element masks that happen to kill units. Outputs
  are equal up to float32 rounding (1e-5).

  Args:
    architecture: of the network.
    params: one network, not traced: shapes depend on values.
    masks: applied first (None = params are masked already).

  Returns:
    The smaller architecture and its parameters, in the types of params.

  Raises:
    ValueError: the parameters are not those of the architecture, quantized or
      traced.
  """
  trees.named_leaves(params)  # nothing is quantized
  if masks is not None:
    params = masking.apply_masks(params, masks)
  if any(isinstance(x, core.Tracer) for x in jax.tree.leaves(params)):
    raise ValueError(
      "compact needs concrete parameters: its result's shapes depend on their "
      "values; call it outside jit and vmap, one network at a time"
    )
  spec = architecture.spec(problem_of(architecture, params))
  given: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
  for leaf in spec.leaves:
    shape = np.shape(given.get(leaf.path, ()))
    if shape != spec.shape(leaf):
      raise ValueError(
        f"leaf {'/'.join(leaf.path)!r} has shape {shape}, in {architecture} it "
        f"has {spec.shape(leaf)}; give one network, without a seed axis"
      )
  flat = {path: np.array(leaf, np.float64) for path, leaf in given.items()}
  remove_units = architecture.traits.remove_units
  if remove_units is None:
    raise ValueError(
      f"compact cannot remove units of {architecture}: its family has no "
      "`compact` (architectures.families.Family)"
    )
  widths = remove_units(architecture, flat)
  small = {
    path: jnp.asarray(leaf.astype(given[path].dtype))
    for path, leaf in flat.items()
  }
  architecture = dataclasses.replace(architecture, widths=tuple(widths))
  return architecture, traverse_util.unflatten_dict(small)


def problem_of(architecture: Architecture, params: Params) -> Problem:
  """Infers the problem from parameter shapes.

  Only products of height and width are visible in a dense layer, so images are
  taken as square where they can be; every leaf's shape comes out right.

  Raises:
    ValueError: a leaf of the architecture's family is missing.
  """
  leaves: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
  shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
  traits = architecture.traits
  try:
    return traits.problem(shapes, architecture.widths, architecture.options)
  except KeyError as error:
    raise ValueError(
      f"params lack leaf {'/'.join(error.args[0])!r} of {architecture}; they "
      f"have {', '.join('/'.join(p) for p in shapes)}"
    ) from None
  except IndexError:
    raise ValueError(
      f"the leaves of params have other numbers of axes than {architecture}'s"
    ) from None


def _keep(used: np.ndarray) -> np.ndarray:
  """Marks what stays: what is used, or the first when nothing is."""
  return used if used.any() else np.arange(len(used)) == 0


def _cut(flat: Flat, path: tuple[str, ...], axis: int, keep) -> None:
  flat[path] = np.compress(keep, flat[path], axis)


def _all_zero(kernel: np.ndarray, axis: int) -> np.ndarray:
  """Marks entries of an axis whose weights are all zero."""
  return ~np.any(
    np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1), 1
  )


# --- layers one after the other ----------------------------------------------


def chain(architecture: Architecture, flat: Flat) -> list[int]:
  """Folds constant units going forward, then cuts unread ones going back.

  Of layers NAME_0, NAME_1, ..., output, one after the other. Forward, since a
  folded constant can make the next layer's units constant; backward, since a
  unit that only cut units read is unread.
  """
  del architecture
  layers = sorted(
    {path[0] for path in flat if path[0] != "output"},
    key=lambda name: int(name.split("_")[-1]),
  ) + ["output"]
  for here, after in zip(layers, layers[1:], strict=False):
    kernel, bias = flat[here, "kernel"], flat[here, "bias"]
    following = flat[after, "kernel"]
    output = np.maximum(bias, 0)  # of a unit without inputs, after its ReLU
    constant = _all_zero(kernel, -1)
    if following.ndim == 4:
      # Zero padding breaks a constant channel off at the edge of the image,
      # which no bias can express; only a channel of zeros is gone.
      constant &= output == 0
    weights = following.sum(axis=tuple(range(following.ndim - 2)))
    contribution = output[constant] @ weights[constant]
    flat[after, "bias"] = flat[after, "bias"] + contribution
    following[..., constant, :] = 0
  widths = []
  for here, after in reversed(list(zip(layers, layers[1:], strict=False))):
    used = ~_all_zero(flat[after, "kernel"], -2)
    keep = _keep(used)
    if not used.any():
      flat[here, "kernel"][..., 0] = 0
      flat[here, "bias"][0] = 0
    _cut(flat, (here, "kernel"), -1, keep)
    _cut(flat, (here, "bias"), -1, keep)
    _cut(flat, (after, "kernel"), -2, keep)
    widths.append(int(keep.sum()))
  return widths[::-1]


# --- transformers ------------------------------------------------------------


def transformer(architecture: Architecture, flat: Flat) -> list[int]:
  """Removes heads, what is inside them, and MLP units of every block."""
  widths = [architecture.widths[0]]
  for i in range(architecture.depth):
    widths += [*_attention(f"block_{i}", flat), _mlp(f"block_{i}", flat)]
  return widths


def _mlp(block: str, flat: Flat) -> int:
  """Removes MLP units; the output of one without inputs is gelu(bias)."""
  inner, outer = (block, "mlp", "in"), (block, "mlp", "out")
  constant = _all_zero(flat[*inner, "kernel"], 1)
  output = np.asarray(jax.nn.gelu(flat[*inner, "bias"].astype(np.float32)))
  kernel = flat[*outer, "kernel"]
  flat[*outer, "bias"] = (
    flat[*outer, "bias"] + output[constant] @ kernel[constant]
  )
  kernel[constant] = 0
  keep = _keep(~_all_zero(kernel, 0))
  _cut(flat, (*inner, "kernel"), 1, keep)
  _cut(flat, (*inner, "bias"), 0, keep)
  _cut(flat, (*outer, "kernel"), 0, keep)
  return int(keep.sum())


def _attention(block: str, flat: Flat) -> tuple[int, int]:
  """Removes heads, then shortens all heads to the longest that is left.

  Attention weights sum to 1, so a value that is constant over tokens is passed
  on as it is. A head's query and key dimensions may be permuted together, and
  so may its value and output dimensions.
  """

  def path(name, leaf):
    return (block, "attention", name, leaf)

  values, out = flat[path("value", "kernel")], flat[path("out", "kernel")]
  constant = ~np.any(values, axis=0)  # [heads, head_dim]
  values = flat[path("value", "bias")] * constant
  contribution = np.einsum("hk,hkd->d", values, out)
  flat[path("out", "bias")] = flat[path("out", "bias")] + contribution
  out[constant] = 0
  live_values = np.any(out, axis=-1)
  keep = _keep(live_values.any(axis=1))
  for name in ("query", "key", "value"):
    _cut(flat, path(name, "kernel"), 1, keep)
    _cut(flat, path(name, "bias"), 0, keep)
  _cut(flat, path("out", "kernel"), 0, keep)
  query, key = flat[path("query", "kernel")], flat[path("key", "kernel")]
  # A key that is the same for all tokens moves all scores alike, which softmax
  # does not see; a query of zero moves none.
  asks = np.any(query, axis=0) | (flat[path("query", "bias")] != 0)
  live_scores = asks & np.any(key, axis=0)
  before, size = live_scores.shape[1], 1
  for live in (live_scores, live_values[keep]):
    size = max(size, int(live.sum(axis=1).max()))
  for names, live in (
    (("query", "key"), live_scores),
    (("value", "out"), live_values[keep]),
  ):
    order = np.argsort(~live, axis=1, kind="stable")[:, :size]
    for name in names:
      _shorten(flat, path(name, "kernel"), order, live)
      if name != "out":
        _shorten(flat, path(name, "bias"), order, live)
  # The network divides scores by the root of the head's size.
  scale = math.sqrt(size / before)
  for leaf in ("kernel", "bias"):
    flat[path("query", leaf)] = flat[path("query", leaf)] * scale
  return int(keep.sum()), size


def _shorten(flat: Flat, path: tuple[str, ...], order, live) -> None:
  """Takes `order` [heads, size] of the head dimensions; dead ones become 0."""
  axis = 1 if path[-2] == "out" or path[-1] == "bias" else 2
  array = np.moveaxis(flat[path], (axis - 1, axis), (0, 1)) * live.reshape(
    *live.shape, *[1] * (flat[path].ndim - 2)
  )
  taken = np.take_along_axis(
    array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1
  )
  flat[path] = np.moveaxis(taken, (0, 1), (axis - 1, axis))
