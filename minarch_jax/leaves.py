"""The leaves of a parameter tree: their names, and which of them are arrays.

One owner for every kind of tree: dictionaries, lists, named tuples, registered
dataclasses, `nnx.State`. A leaf is called "path/to/leaf" everywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp

from minarch_jax import types

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


def named(tree: types.Params) -> list[tuple[Path, Any]]:
  """Lists (path, leaf) in the order of `jax.tree.leaves`.

  A QTensor is one leaf. An NNX variable is called by its place, not by the
  `value` that it holds.
  """
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_qtensor)
  return [(_path(keys), leaf) for keys, leaf in pairs]


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
