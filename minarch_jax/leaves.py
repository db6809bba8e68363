"""The leaves of a parameter tree: their names, and what their axes are.

One owner for every kind of tree: dictionaries, lists, named tuples, registered
dataclasses, `nnx.State`. A leaf is called "path/to/leaf" everywhere. Its axes
are told by one letter each: i is summed over, o is an output, s holds layers of
their own, one after the other, as `nn.scan` stacks them. "ioo" is the kernel of
a query [features, heads, head size]; dots stand for any number of inputs, so
"...o" is a kernel of Flax and "oi..." a weight of Equinox.
"""

from collections.abc import Callable, Iterable, Mapping
import fnmatch
from typing import Any, NamedTuple

import jax
from jax import core
import jax.numpy as jnp
import numpy as np

from minarch_jax import registries, types

Path = tuple[str, ...]


def is_qtensor(leaf: Any) -> bool:
  return isinstance(leaf, types.QTensor)


def is_array(leaf: Any) -> bool:
  """Says whether a leaf is an array of numbers, or the shape of one.

  Python scalars, functions and PRNG keys are not; transforms leave them alone.
  """
  if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
    return False
  return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def on_host(leaf: Any) -> Any:
  """Returns a leaf as NumPy's where that copies nothing, else as it is.

  That is, where its values are known and lie in the memory of one CPU.
  """
  if not isinstance(leaf, jax.Array) or isinstance(leaf, core.Tracer):
    return leaf
  if not is_array(leaf):
    return leaf
  places = leaf.devices()
  one_cpu = len(places) == 1 and next(iter(places)).platform == "cpu"
  return np.asarray(leaf) if one_cpu else leaf


def named(tree: types.Params) -> list[tuple[Path, Any]]:
  """Lists (path, leaf) in the order of `jax.tree.leaves`.

  A QTensor is one leaf. An NNX variable is called by its place, not by the
  `value` that it holds.
  """
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_qtensor)
  return [(_path(keys), leaf) for keys, leaf in pairs]


def split(
  tree: types.Params,
) -> tuple[list[Any], Callable[[list[Any]], types.Params]]:
  """Returns the leaves that hold numbers, which programs take as arguments, and
  the function that puts such leaves back beside the others."""
  found, treedef = jax.tree.flatten(tree, is_leaf=is_qtensor)
  at = [i for i, x in enumerate(found) if is_qtensor(x) or is_array(x)]

  def whole(numbers: list[Any]) -> types.Params:
    changed = dict(zip(at, numbers, strict=True))
    return treedef.unflatten([changed.get(i, x) for i, x in enumerate(found)])

  return [found[i] for i in at], whole


def weights(tree: types.Params) -> frozenset[Path]:
  """The leaves that are weights, by the library that made the tree.

  Kernels and embeddings, as Flax names them, where there are some; otherwise
  the matrices that Haiku ("w", "embeddings") and Equinox ("weight") name so. A
  weight whose bias has its shape is the scale of a norm.
  """
  shapes = {
    path: leaf.shape
    for path, leaf in named(tree)
    if path and (is_qtensor(leaf) or is_array(leaf))
  }
  found = {path for path in shapes if registries.is_weight(path)}
  return frozenset(
    found
    or {
      path
      for path, shape in shapes.items()
      if path[-1] in CONVENTIONS
      and len(shape) > 1
      and all(shapes.get((*path[:-1], b)) != shape for b in BIASES)
    }
  )


def is_embedding(path: Path) -> bool:
  """Says whether rows of a leaf are looked up, not multiplied with."""
  convention = CONVENTIONS.get(path[-1]) if path else None
  named = convention == FIRST and _layer(path).startswith("embed")
  return named or convention == ROWS


def likely(tree: types.Params) -> list[str]:
  """Lists the last names of arrays with two axes or more, for messages."""
  found = [p[-1] for p, x in named(tree) if p and is_array(x) and x.ndim > 1]
  return list(dict.fromkeys(found))


def _path(keys: tuple[Any, ...]) -> Path:
  if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
    keys = keys[:-1]
  return tuple(map(_entry, keys))


def _entry(key: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


# --- axes --------------------------------------------------------------------


class Axes(NamedTuple):
  """The axes of a leaf, by number; inputs are those summed over."""

  inputs: tuple[int, ...]
  outputs: tuple[int, ...] = ()
  stacked: tuple[int, ...] = ()


# What a leaf may be where nothing decides: texts, the likeliest first.
Readings = tuple[str, ...]
Rules = Mapping[str, str]  # pattern of "path/to/leaf" -> letters of its axes

# How libraries lay out the leaves that they call so: Flax (kernel, embedding),
# Haiku (w, embeddings) and Equinox (weight).
LAST, FIRST, ROWS = "outputs last", "outputs first", "rows"
CONVENTIONS = {
  "kernel": LAST,
  "w": LAST,
  "weight": FIRST,
  "embedding": ROWS,
  "embeddings": ROWS,
}
BIASES = ("bias", "b")
# Layers with more than one input or output axis, by their name.
LAYERS: dict[str, str] = {
  **dict.fromkeys(("query", "key", "value"), "ioo"),
  **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "ioo"),
  **dict.fromkeys(("out", "o_proj", "out_proj"), "iio"),
}


def trailing(ndim: int, outputs: int) -> Axes:
  """Describes a leaf whose last axes are its outputs."""
  split = ndim - outputs
  return Axes(tuple(range(split)), tuple(range(split, ndim)))


def _read(text: str, shape: tuple[int, ...]) -> Axes:
  """Reads the letters of axes.

  Raises:
    ValueError: letters that are none, or do not fit so many axes.
  """
  before, dots, after = text.partition("...")
  if dots:
    text = before + "i" * (len(shape) - len(before) - len(after)) + after
  if len(text) != len(shape) or set(text) - set("ios"):
    raise ValueError(
      f"axes {text!r} do not fit the shape {shape}; write one letter for each "
      "axis: i, o or s, or dots for any number of inputs"
    )
  return Axes(*(tuple(i for i, a in enumerate(text) if a == x) for x in "ios"))


def known(name: str, axes: Axes | Readings) -> Axes:
  """Returns axes that are known.

  Raises:
    ValueError: they are not; names the leaf and what to say.
  """
  if isinstance(axes, Axes):
    return axes
  raise ValueError(
    f"leaf {name!r}: say what its axes are, for example axes={{{name!r}: "
    f"{axes[0]!r}}}, one letter each: i is summed over, o an output, s stacked "
    f"layers; its name and shape may mean {' or '.join(axes)}"
  )


def axes_of(
  found: Iterable[tuple[Path, Any]], rules: Rules | None = None
) -> dict[Path, Axes | Readings]:
  """Describes every array of a tree, as far as it can be told.

  What decides, in this order: `rules`; a bias beside the leaf, which has the
  shape of its outputs; how much the leaves around it are stacked; the name of
  the layer; a window as of convolutions.

  Args:
    found: (path, leaf), as `named` lists them; an array or its shape.
    rules: what the user says, by patterns as of `fnmatch`; the first that
      matches counts.

  Returns:
    By path, axes, or the readings among which nothing decides.

  Raises:
    ValueError: a rule that matches no leaf, or letters that do not fit it.
  """
  shapes = {
    path: tuple(leaf) if isinstance(leaf, tuple) else np.shape(leaf)
    for path, leaf in found
    if isinstance(leaf, tuple) or is_array(leaf)
  }
  axes: dict[Path, Axes | Readings] = dict(_ruled(shapes, rules or {}))
  open_leaves = {}
  for path, shape in shapes.items():
    if path not in axes:
      texts = _by_bias(path, shapes, _readings(path, len(shape)))
      if len(texts) == 1:
        axes[path] = _read(texts[0], shape)
      else:
        axes[path] = open_leaves[path] = texts
  depths = _depths(shapes, axes)
  for path, texts in open_leaves.items():
    texts = _by_depth(path, shapes, texts, depths)
    text = _chosen(path, shapes[path], texts)
    axes[path] = texts if text is None else _read(text, shapes[path])
  return axes


def _ruled(shapes: Mapping[Path, Any], rules: Rules) -> dict[Path, Axes]:
  """The leaves that rules describe."""
  axes, names = {}, {"/".join(path): path for path in shapes}
  for pattern, text in rules.items():
    matched = fnmatch.filter(names, pattern)
    if not matched:
      raise ValueError(
        f"axes: {pattern!r} matches no leaf{registries.nearest(pattern, names)}"
        f"; the leaves are {', '.join(names)}"
      )
    for name in matched:
      path = names[name]
      try:
        axes.setdefault(path, _read(text, shapes[path]))
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
  return axes


def _readings(path: Path, ndim: int) -> Readings:
  """All that a leaf of this name may be."""
  if ndim < 2:
    return ("i" * ndim,)
  convention = CONVENTIONS.get(path[-1]) if path else None
  if is_embedding(path):
    return ("s" * (ndim - 2) + "io",)
  deep = range(min(2, ndim - 2) + 1)
  if convention == FIRST:
    return tuple("s" * k + "o" + "i" * (ndim - k - 1) for k in deep)
  texts = tuple(
    "s" * k + "i" * (ndim - k - outputs) + "o" * outputs
    for k in deep
    for outputs in (1, 2)
    if ndim - k > outputs
  )
  # Of other names not even the order of inputs and outputs is known.
  return texts if convention else (*texts, "o" + "i" * (ndim - 1))


def _layer(path: Path) -> str:
  return path[-2].lower() if len(path) > 1 else ""


def _by_bias(path: Path, shapes: Mapping[Path, Any], texts: Readings):
  """The readings that give the outputs the shape of the bias."""
  shape = shapes[path]
  for name in BIASES:
    bias = shapes.get((*path[:-1], name))
    if bias is None or len(shape) < 2:
      continue
    fitting = []
    for text in texts:
      outer = [n for n, a in zip(shape, text, strict=True) if a != "i"]
      ones = [1] * (text.count("i") - 1)  # Equinox convolutions: [out, 1, 1]
      if list(bias) in (outer, outer + ones):
        fitting.append(text)
    return tuple(fitting) or texts
  return texts


def _depths(shapes, axes) -> dict[Path, set[tuple[int, ...]]]:
  """Which stacks there are below every layer, by sizes; () is none."""
  depths: dict[Path, set[tuple[int, ...]]] = {}
  for path, shape in shapes.items():
    found = axes[path]
    if path[-1:] == ("scale",):
      stack = shape[:-1]
    elif isinstance(found, Axes) and len(shape) > 1:
      stack = tuple(shape[axis] for axis in found.stacked)
    else:
      continue
    for end in range(len(path)):
      depths.setdefault(path[:end], set()).add(stack)
  return depths


def _by_depth(path, shapes, texts: Readings, depths) -> Readings:
  """The readings that are stacked as all the nearest leaves around are.

  That those are not stacked tells nothing: layers are stacked by blocks.
  """
  for end in reversed(range(len(path))):
    stacks = depths.get(path[:end], set())
    if len(stacks) == 1 and stacks != {()}:
      (stack,) = stacks
      fitting = [text for text in texts if text.count("s") == len(stack)]
      if fitting and shapes[path][: len(stack)] == stack:
        return tuple(fitting)
    if stacks:
      break
  return texts


def _chosen(path: Path, shape, texts: Readings) -> str | None:
  """The reading that the name of the layer or a window decides for."""
  if not path or path[-1] not in CONVENTIONS:
    return None
  if len(texts) == 1:
    return texts[0]
  layer = _layer(path)
  for text in texts:
    base = text.lstrip("s")
    if base == LAYERS.get(layer):
      return text
    one = base.count("o") == 1 and len(base) > 2
    window = [
      n for n, a in zip(shape[-len(base) :], base, strict=True) if a == "i"
    ]
    window = window[1:] if base[0] == "o" else window[:-1]
    square = len(window) > 1 and len(set(window)) == 1
    if one and (layer.startswith("conv") or square):
      return text
  return None
