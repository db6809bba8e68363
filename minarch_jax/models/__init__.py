"""Flax modules as pure functions of parameters and true sizes."""

from collections.abc import Callable, Mapping, Sequence
import functools
import itertools
import math
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from minarch_jax import names, random
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
    return _init(key, sizes or full, architecture, input_shape, num_classes)

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


# Compiled whole: in a notebook one operation after the other takes seconds.
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _init(
  key: jax.Array, sizes: Sizes, architecture, input_shape, num_classes
) -> Params:
  spec = architecture.spec(input_shape, num_classes)
  leaves = _random_leaves(spec)
  # All leaves in one call: a generator each would dominate compilation.
  values = random.normals(key, leaves)
  draws = dict(zip((path for path, _ in leaves), values, strict=True))
  return initial(draws, spec, sizes)


# The kernel of a dnn that reads the images.
_FIRST = ("hidden_0", "kernel")


def turned(tree: Any) -> Any:
  """Transposes the kernel that reads the images, wherever a tree holds it.

  In parameters, moments and masks of a dnn alike; its own inverse. The members
  of a pack share their images: with units as rows, [A, width, inputs], one
  product serves them all, and neither it nor its gradient moves the kernel. A
  step of 16 networks 20-20 on 28x28 images takes four fifths of the time.
  """

  def turn(path, leaf):
    names = tuple(getattr(key, "key", None) for key in path[-2:])
    return leaf.T if names == _FIRST else leaf

  return jax.tree_util.tree_map_with_path(turn, tree)


def on_turned(model: Model) -> Model:
  """Returns the model of `turned` parameters."""

  def apply(params, *arguments, **options):
    return model.apply(turned(params), *arguments, **options)

  return model._replace(apply=apply)


def flatten(tree: Any) -> dict[tuple[str, ...], Any]:
  """Lists a tree of nested dictionaries by path."""
  return dict(traverse_util.flatten_dict(tree))  # type: ignore


def _exists(leaf: Leaf, spec: Spec, sizes: Mapping[str, Any], xp: Any) -> Any:
  """Marks the entries of a parent's leaf that lie inside a member.

  Sizes of shape [...] give marks [..., *shape]: one member, or several.
  """
  shape = spec.shape(leaf)
  own = (1,) * len(shape)
  mask = xp.ones(own, bool)

  def column(size):
    size = xp.asarray(size)
    return size.reshape(size.shape + own)

  if "depth" in sizes:
    mask = mask & (column(sizes["depth"]) > leaf.layer)
  for i, axis in enumerate(leaf.axes):
    if axis in sizes:
      along = xp.arange(shape[i]).reshape(
        [-1 if j == i else 1 for j in range(len(own))]
      )
      mask = mask & (along < column(sizes[axis]))
  batch = xp.shape(next(iter(sizes.values()))) if sizes else ()
  return xp.broadcast_to(mask, batch + shape)


def width_masks(spec: Spec, sizes: Mapping[str, Any]) -> Masks:
  """Marks, in every leaf of a parent, the entries of one member or several.

  Args:
    spec: the parent's description.
    sizes: the true size of each unit axis, scalars, which may be traced, or
      arrays [A]; and "depth" where members may lack layers.

  Returns:
    A tree of bool arrays of the parent's shapes, 1 = exists; [A, ...] for
    several members. Numpy in, numpy out.
  """
  xp = _module(*sizes.values())
  return traverse_util.unflatten_dict(
    {leaf.path: _exists(leaf, spec, sizes, xp) for leaf in spec.leaves}
  )


def _random_leaves(
  spec: Spec,
) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
  return [
    (leaf.path, spec.shape(leaf))
    for leaf in spec.leaves
    if names.is_weight(leaf.path)
  ]


def coordinates(
  spec: Spec,
) -> tuple[Sequence[np.ndarray], Callable[[np.ndarray], dict]]:
  """Lists the coordinates of everything that starts random.

  Returns:
    The three columns of `random.coordinates`, and a function that cuts values
    drawn there, [S, at least as many], into leaves by path, [S, *shape].
  """
  leaves = _random_leaves(spec)
  ends = list(itertools.accumulate(math.prod(shape) for _, shape in leaves))

  def split(values: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
    starts = [0, *ends]
    return {
      path: values[:, start:end].reshape(-1, *shape)
      for (path, shape), start, end in zip(leaves, starts, ends, strict=False)
    }

  return random.coordinates(leaves), split


def initial(
  draws: Mapping[tuple[str, ...], Any], spec: Spec, sizes: Mapping[str, Any]
) -> Params:
  """Makes initial parameters in a parent's shapes of N(0, 1) values.

  Kernels get variance gain / fan-in of the member (He et al. 2015), so a
  member's values depend on neither the parent nor the other leaves.

  Args:
    draws: arrays [*shape] for one network, or [S, *shape].
    spec: the parent's description.
    sizes: scalars for one network, or arrays [A].

  Returns:
    A tree of [*shape], or [S, A, *shape]. Numpy in, numpy out.
  """
  xp = _module(*draws.values())
  some = next(iter(draws.values()))
  dtype, flat = some.dtype, {}
  for leaf in spec.leaves:
    exists = _exists(leaf, spec, sizes, xp)
    shape = spec.shape(leaf)
    members = exists.shape[: exists.ndim - len(shape)]
    if leaf.path not in draws:
      seeds = some.shape[:1] if members else ()
      value = xp.full(seeds + exists.shape, leaf.path[-1] == "scale", dtype)
    else:
      value = draws[leaf.path]
      seeds = value.shape[: value.ndim - len(shape)]
      value = value.reshape(seeds + (1,) * len(members) + shape)
      gain = xp.asarray(EMBEDDING_STD**2, dtype)
      if leaf.is_kernel:
        gain = leaf.gain / _fan_in(leaf, spec, sizes, xp, dtype)
      value = value * xp.sqrt(gain).reshape(gain.shape + (1,) * len(shape))
    flat[leaf.path] = xp.where(exists, value, xp.zeros((), dtype))
  return traverse_util.unflatten_dict(flat)


def _fan_in(leaf: Leaf, spec: Spec, sizes: Mapping[str, Any], xp, dtype) -> Any:
  """The number of inputs of a kernel's member or members, as a float."""
  fan_in = xp.ones((), dtype)
  for axis in leaf.axes[: -leaf.outputs]:
    size = xp.asarray(sizes.get(axis, spec.sizes[axis]))
    fan_in = fan_in * size.astype(dtype)
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
  flat, found = flatten(params), {}
  own = {leaf.path: spec.shape(leaf) for leaf in spec.leaves}
  for leaf in parent.leaves:
    after = parent.shape(leaf)
    if leaf.path not in own:  # of a layer that the member does not have
      if grow:
        some = next(iter(flat.items()))
        lead = some[1].shape[: some[1].ndim - len(own[some[0]])]
        found[leaf.path] = _module(some[1]).zeros(lead + after, some[1].dtype)
      continue
    value, before = flat[leaf.path], own[leaf.path]
    lead = value.ndim - len(leaf.axes)
    if grow:
      widths = [(0, 0)] * lead
      widths += [(0, b - a) for a, b in zip(before, after, strict=True)]
      found[leaf.path] = _module(value).pad(value, widths)
    else:
      cut = tuple(slice(0, size) for size in before)
      found[leaf.path] = value[(slice(None),) * lead + cut]
  return traverse_util.unflatten_dict(found)


def _module(*values: Any) -> Any:
  """numpy for host arrays and numbers, else jax.numpy."""
  return jnp if any(isinstance(v, jax.Array) for v in values) else np
