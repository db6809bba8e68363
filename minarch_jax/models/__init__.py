"""Flax modules as pure functions of parameters and true sizes."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

from minarch_jax import random
from minarch_jax.architectures import Architecture, Leaf, Shape, Spec
from minarch_jax.models import layers
from minarch_jax.models.cnn import CNN
from minarch_jax.models.dnn import DNN
from minarch_jax.models.vit import ViT
from minarch_jax.types import Array, Masks, Model, Params, Sizes

MODELS: dict[str, type[DNN] | type[CNN] | type[ViT]] = {
  "dnn": DNN,
  "cnn": CNN,
  "vit": ViT,
}

EMBEDDING_STD = 0.02  # Dosovitskiy et al. 2021


def make_model(
  architecture: Architecture,
  input_shape: Shape,
  num_classes: int,
  *,
  compute_dtype: Any = None,
  convolution: str = "hybrid",
) -> Model:
  """Turns an architecture into a pure `init`/`apply` pair.

  Args:
    architecture: the network, or the parent of those it will hold.
    input_shape: (height, width, channels) of one image.
    num_classes: number of logits.
    compute_dtype: type of activations and products; None = the parameters'
      own (float32, or float64 under `jax.enable_x64`). Logits are always in
      the parameters' type.
    convolution: formulation, a key of `layers.CONVOLUTIONS`.

  Returns:
    Model. `sizes` may be None for the architecture itself.

  Raises:
    ValueError: the architecture does not fit the images.
  """
  spec = architecture.spec(input_shape, num_classes)
  module = MODELS[architecture.family](
    architecture, input_shape, num_classes, compute_dtype, convolution
  )
  full = {axis: spec.sizes[axis] for axis in spec.unit_axes}

  def init(key: jax.Array, sizes: Sizes | None = None) -> Params:
    return _initial(key, spec, sizes or full)

  def apply(
    params: Params,
    x: Array,
    sizes: Sizes | None = None,
    tap: layers.Tap = layers.no_tap,
  ) -> jax.Array:
    dtype = compute_dtype or jnp.result_type(float)
    logits = module.clone(tap=tap).apply(
      {"params": params}, jnp.asarray(x, dtype), sizes or full
    )
    return jnp.asarray(logits, jnp.result_type(float))

  return Model(init, apply)


def flatten(tree: Any) -> dict[tuple[str, ...], Any]:
  """Lists a tree of nested dictionaries by path."""
  return dict(traverse_util.flatten_dict(tree))  # type: ignore


def _exists(leaf: Leaf, spec: Spec, sizes: Mapping[str, Any]) -> jax.Array:
  """Marks the entries of a parent's leaf that lie inside a member."""
  shape = spec.shape(leaf)
  mask = jnp.ones((1,) * len(shape), bool)
  for i, axis in enumerate(leaf.axes):
    if axis in sizes:
      inside = jnp.arange(shape[i]) < sizes[axis]
      mask = mask & inside.reshape(
        [-1 if j == i else 1 for j in range(mask.ndim)]
      )
  return jnp.broadcast_to(mask, shape)


def width_masks(spec: Spec, sizes: Mapping[str, Any]) -> Masks:
  """Marks, in every leaf of a parent, the entries of one member.

  Args:
    spec: the parent's description.
    sizes: the member's true size of each unit axis; may be traced.

  Returns:
    A tree of bool arrays of the parent's shapes, 1 = exists.
  """
  return traverse_util.unflatten_dict(
    {leaf.path: _exists(leaf, spec, sizes) for leaf in spec.leaves}
  )


def _initial(key: jax.Array, spec: Spec, sizes: Mapping[str, Any]) -> Params:
  """Draws a member's parameters in its parent's shapes.

  Kernels get variance gain / fan-in of the member (He et al. 2015), so a
  member's values depend on neither the parent nor the other leaves. All leaves
  are drawn in one call: a generator per leaf would dominate compilation.
  """
  drawn = [leaf for leaf in spec.leaves if leaf.path[-1] in _STARTS_RANDOM]
  normal = random.normals(
    key, [(leaf.path, spec.shape(leaf)) for leaf in drawn]
  )
  draws = dict(zip((leaf.path for leaf in drawn), normal, strict=True))
  dtype = jnp.result_type(float)
  flat = {}
  for leaf in spec.leaves:
    if leaf.is_kernel:
      value = draws[leaf.path] * jnp.sqrt(
        leaf.gain / _fan_in(leaf, spec, sizes)
      )
    elif leaf.path[-1] == "embedding":
      value = draws[leaf.path] * EMBEDDING_STD
    else:
      value = jnp.full(spec.shape(leaf), leaf.path[-1] == "scale", dtype)
    value = jnp.where(_exists(leaf, spec, sizes), value, 0)
    flat[leaf.path] = value.astype(dtype)
  return traverse_util.unflatten_dict(flat)


_STARTS_RANDOM = ("kernel", "embedding")


def _fan_in(leaf: Leaf, spec: Spec, sizes: Mapping[str, Any]) -> jax.Array:
  """The number of inputs of a kernel's member, as a float."""
  fan_in = jnp.ones((), jnp.result_type(float))
  for axis in leaf.axes[: -leaf.outputs]:
    fan_in = fan_in * jnp.asarray(
      sizes.get(axis, spec.sizes[axis]), fan_in.dtype
    )
  return fan_in


def pad(params: Params, spec: Spec, parent: Spec) -> Params:
  """Puts a member's parameters into the leading block of its parent's shapes.

  Leading batch axes (seeds) are kept; numpy in, numpy out.
  """
  return _reshape_leaves(params, spec, parent, grow=True)


def unpad(params: Params, spec: Spec, parent: Spec) -> Params:
  """Cuts a member's parameters out of its parent's; the inverse of `pad`."""
  return _reshape_leaves(params, spec, parent, grow=False)


def _reshape_leaves(params, spec, parent, *, grow):
  flat = flatten(params)
  for small, large in zip(spec.leaves, parent.leaves, strict=True):
    value = flat[small.path]
    lead = value.ndim - len(small.axes)
    before, after = spec.shape(small), parent.shape(large)
    if grow:
      widths = [(0, 0)] * lead
      widths += [(0, b - a) for a, b in zip(before, after, strict=True)]
      flat[small.path] = _module(value).pad(value, widths)
    else:
      cut = tuple(slice(0, size) for size in before)
      flat[small.path] = value[(slice(None),) * lead + cut]
  return traverse_util.unflatten_dict(flat)


def _module(value: Array) -> Any:
  import numpy as np

  return np if isinstance(value, np.ndarray) else jnp
