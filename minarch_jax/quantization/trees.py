"""Quantization of a parameter tree: which leaves, with which bits each.

All functions are for ONE tree; `jax.vmap` maps them over seeds and members.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from minarch_jax import leaves, registries, types
from minarch_jax.quantization import calibration as calibrations
from minarch_jax.quantization import formats, layouts, tensors

Choose = Callable[[leaves.Path], bool]  # whether the leaf is quantized
# One width or format for all leaves, or one for each "path/to/leaf".
TreeBits = formats.Bits | Mapping[str, formats.Bits]


def leaves_with_names(tree: types.Params) -> list[tuple[str, Any]]:
  """Lists ("path/to/leaf", leaf); a QTensor is one leaf."""
  return [("/".join(path), leaf) for path, leaf in leaves.named(tree)]


def replace_leaves(
  tree: types.Params, changed: Mapping[str, Any]
) -> types.Params:
  """Returns the tree with the leaves of the given names exchanged."""
  _, treedef = jax.tree.flatten(tree, is_leaf=leaves.is_qtensor)
  pairs = leaves_with_names(tree)
  return treedef.unflatten([changed.get(name, leaf) for name, leaf in pairs])


def weight_names(
  params: types.Params, choose: Choose | None = None
) -> list[str]:
  """Lists the leaves that quantization touches, as "path/to/leaf"."""
  choose = choose or leaves.weights(params).__contains__
  return [
    "/".join(path)
    for path, leaf in leaves.named(params)
    if choose(path) and (leaves.is_qtensor(leaf) or leaves.is_array(leaf))
  ]


def bits_by_leaf(
  params: types.Params, bits: TreeBits, choose: Choose | None = None
) -> dict[str, formats.Bits]:
  """Gives each quantized leaf its width or format.

  Raises:
    ValueError: a mapping that names other leaves than the quantized ones, or
      a width that is none.
  """
  names = weight_names(params, choose)
  if not names:
    known = ", ".join(name for name, _ in leaves_with_names(params))
    raise ValueError(
      "no leaf is a weight (choose others with choose=lambda path: path[-1] in "
      f"{leaves.likely(params)}), so nothing can be quantized; the leaves are "
      f"{known or 'none'}"
    )
  if not isinstance(bits, Mapping):
    bits = dict.fromkeys(names, bits)
  for name in bits:
    if name not in names:
      raise ValueError(
        f"bits name {name!r}, which is not a quantized leaf"
        f"{registries.nearest(name, names)}; they are {', '.join(names)}"
      )
  for name in names:
    if name not in bits:
      raise ValueError(
        f"bits give no width to {name}; name it (32 = as trained)"
      )
  return {
    name: value if isinstance(value, jax.Array) else formats.name_of(value)
    for name, value in bits.items()
  }


def _check(name: str, leaf: Any) -> None:
  if leaves.is_qtensor(leaf):
    raise ValueError(f"{name}: is quantized already; dequantize the tree first")
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    raise ValueError(
      f"{name}: cannot quantize {leaf.dtype} values; pass float parameters"
    )
  known = not isinstance(leaf, jax.core.Tracer)
  # In numpy, which also works on constants of a function being traced.
  if known and not np.all(np.isfinite(np.asarray(leaf, np.float32))):
    raise ValueError(
      f"{name}: weights are NaN or infinite; leave diverged networks out"
    )


def map_weights(
  change: Callable[..., Any],
  params: types.Params,
  bits: TreeBits,
  granularity: str,
  within: types.Masks | None,
  choose: Choose | None,
  axes: leaves.Rules | None = None,
) -> types.Params:
  """Applies change(leaf, bits, layout, within) to each quantized leaf.

  Raises:
    ValueError: see `quantize`.
  """
  by_leaf = bits_by_leaf(params, bits, choose)
  named = leaves.named(params)
  if within is None:
    masks = [None] * len(named)
  else:
    _check_same_structure(params, within)
    masks = jax.tree.leaves(within)
  treedef = jax.tree.structure(params, is_leaf=leaves.is_qtensor)
  described = leaves.axes_of(named, axes)
  changed = []
  for (path, leaf), mask in zip(named, masks, strict=True):
    name = "/".join(path)
    if name in by_leaf:
      _check(name, leaf)
      _check_within(name, leaf, mask)
      layout = layouts.make_layout(
        *(granularity, path, leaf.shape, described[path])
      )
      leaf = change(leaf, by_leaf[name], layout, mask)
    changed.append(leaf)
  return jax.tree.unflatten(treedef, changed)


def _check_within(name: str, leaf: Any, mask: Any) -> None:
  """Raises ValueError for a mask that does not broadcast to its leaf."""
  if mask is None:
    return
  try:
    fits = np.broadcast_shapes(np.shape(mask), leaf.shape) == leaf.shape
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
      f"within: {name} has shape {leaf.shape}, its mask {np.shape(mask)}; give "
      "that shape, or the scalar 1"
    )


def _check_same_structure(params, within) -> None:
  expected, given = jax.tree.structure(params), jax.tree.structure(within)
  if expected != given:
    raise ValueError(
      f"within has the structure {given}, the parameters have {expected}; "
      "give one mask (or the scalar 1) for each leaf"
    )


def quantize(
  params: types.Params,
  bits: TreeBits,
  granularity: str = "channel",
  *,
  calibration: calibrations.Rule = None,
  within: types.Masks | None = None,
  choose: Choose | None = None,
  axes: leaves.Rules | None = None,
  packed: bool = False,
) -> types.Params:
  """Replaces the weights of a parameter tree by QTensors.

  >>> quantized = ma.quantize(params, 4)
  >>> quantized["output"]["kernel"].values.dtype, params["output"]["bias"].dtype
  (dtype('int8'), dtype('float32'))
  >>> rounded = ma.dequantize(quantized)

  Symmetric integers by default: scale = max|w| / (2**(bits-1) - 1), codes
  within +-(2**(bits-1) - 1), and a weight of exactly 0 stays exactly 0.

  Args:
    params: one network's parameters.
    bits: 32 (as trained: leaves stay float), 8, 6, 5, 4, 3, 2, 1, a name of
      FORMATS such as "nf4" or "uint4", or a mapping from "path/to/leaf" to
      one of these.
    granularity: "tensor", "channel" or "group:G": what shares a scale.
    calibration: a name of CALIBRATIONS or a function; None = the format's
      own (absolute maximum; mean magnitude for binary and ternary).
    within: for a network padded inside a wider parent, masks of the entries
      that exist, the structure of params. Only "percentile" and "kl" need
      them: to the others, and to all scales by absolute maximum, a padded 0
      is no number at all.
    choose: which paths are weights; None = as `minarch_jax.leaves.weights`
      finds them: kernels and embeddings in Flax's trees.
    axes: what the axes of leaves are where names, biases and shapes do not
      tell, by patterns: {"*/proj/kernel": "ioo"}; see `minarch_jax.leaves`.
    packed: hold codes in their bits alone, two of 4 bits in a byte; see
      `QTensor.pack`.

  Returns:
    The tree with QTensor leaves.

  Raises:
    ValueError: unknown bits, granularity or calibration; a group larger than
      the inputs; an empty, integer, NaN or infinite weight (values are seen
      outside jit only); masks of another structure; axes that are not known.
  """

  def change(leaf, name, layout, mask):
    if isinstance(name, jax.Array):
      raise ValueError(
        "bits are traced, but stored codes need a static width; use "
        "fake_quantize, or pass a Python integer"
      )
    if name == "float32":
      return leaf
    q = tensors.quantize_tensor(
      leaf, name, layout, calibration=calibration, within=mask
    )
    return tensors.pack_tensor(q) if packed else q

  return map_weights(change, params, bits, granularity, within, choose, axes)


def dequantize(params: types.Params) -> types.Params:
  """Replaces QTensors by the numbers they stand for, in their first type.

  Args:
    params: one network's parameters; map over seeds with `jax.vmap`.

  Raises:
    ValueError: a QTensor with a leading axis.
  """

  def change(leaf, name):
    if not leaves.is_qtensor(leaf):
      return leaf
    tensors.check_one(name, leaf)
    return tensors.dequantize_tensor(leaf)

  return replace_leaves(
    params,
    {name: change(leaf, name) for name, leaf in leaves_with_names(params)},
  )


def fake_quantize(
  params: types.Params,
  bits: TreeBits,
  granularity: str = "channel",
  *,
  calibration: calibrations.Rule = None,
  within: types.Masks | None = None,
  choose: Choose | None = None,
  axes: leaves.Rules | None = None,
) -> types.Params:
  """Rounds weights to what `dequantize(quantize(...))` gives, bit for bit.

  >>> def rounded_loss(params):
  ...   return loss(ma.fake_quantize(params, bits=2), batch)
  >>> grads = jax.grad(rounded_loss)(params)

  The gradient goes straight through to the weights: it is 1 inside the
  calibrated range and 0 where a weight is clipped (Bengio et al. 2013, arXiv
  1308.3432; clipped as in Courbariaux et al. 2016, arXiv 1602.02830, equation
  4). A range by absolute maximum clips nothing. Scales are constants to it.

  Takes the arguments of `quantize`; besides, `bits` may be a traced integer
  (2 to 8, or 32 for the identity), so that one compiled program serves a grid
  of widths.
  """

  def change(leaf, name, layout, mask):
    return tensors.fake_quantize_tensor(
      leaf, name, layout, calibration=calibration, within=mask
    )

  return map_weights(change, params, bits, granularity, within, choose, axes)
