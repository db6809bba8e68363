"""Names of leaves and layers, and the checks a user's tree must pass."""

from collections.abc import Iterable, Sequence
import sys
from typing import Any

import jax
import numpy as np

from minarch_jax import leaves, registries
from minarch_jax.types import Params

Path = leaves.Path


def named_leaves(tree: Params) -> list[tuple[Path, Any]]:
  """Lists (path, leaf) in the order of `jax.tree.leaves`.

  Raises:
    ValueError: a leaf is quantized.
  """
  named = leaves.named(tree)
  for path, leaf in named:
    if leaves.is_qtensor(leaf):
      raise ValueError(
        f"leaf {'/'.join(path)!r} is quantized; prune before quantizing, or "
        "dequantize first"
      )
  return named


def prunable(tree: Params, names: Sequence[str] | None = None) -> set[Path]:
  """Says which leaves are pruned: those of these last names, or the weights.

  Scalar leaves never are: a scalar mask means "not pruned". Nor is what holds
  no numbers.
  """
  found = {
    path
    for path, leaf in leaves.named(tree)
    if path and leaves.is_array(leaf) and np.ndim(leaf) > 0
  }
  if names is None:
    return found & leaves.weights(tree)
  return {path for path in found if path[-1] in names}


def in_layer(path: Path, layer: str) -> bool:
  """Says whether "block_0/mlp" names a path's leaf or one of its layers."""
  name = "/".join(path)
  return name == layer or name.startswith(layer + "/")


def layer_names(paths: Iterable[Path]) -> list[str]:
  """Lists every name that selects at least one of the paths."""
  names = [
    "/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)
  ]
  return list(dict.fromkeys(names))


def check_layers(what: str, named: Iterable[str], paths: Sequence[Path]):
  """Raises ValueError when a named layer selects none of the paths."""
  for layer in named:
    if not any(in_layer(path, layer) for path in paths):
      known = layer_names(paths)
      raise ValueError(
        f"{what} names layer {layer!r}, which does not exist"
        f"{registries.nearest(layer, known)}; layers that can be pruned: "
        f"{', '.join(known)}"
      )


def check_like(what: str, tree: Params, params: Params) -> None:
  """Raises ValueError unless tree has the leaves of params; see `like`."""
  like(what, tree, params)


def like(what: str, tree: Params, params: Params) -> list[Any]:
  """Lists the leaves of a tree that was made for params, in their order.

  Each leaf must have the name of its parameter, and its shape or none. The
  containers must be the same, except that NNX variables may have been taken
  out of one of them, as `nnx.Optimizer` does.

  Raises:
    ValueError: the tree was made for another one.
  """
  ours, theirs = named_leaves(tree), named_leaves(params)
  here, there = dict(ours), dict(theirs)
  missing = [path for path in there if path not in here]
  extra = [path for path in here if path not in there]
  if missing or extra:
    said = "lacks" if missing else "has an unknown"
    leaf = "/".join((missing or extra)[0])
    raise ValueError(
      f"{what}: the tree {said} leaf {leaf!r}; it must have the structure of "
      "the parameters it was made for"
    )
  if _bare(tree) != _bare(params):
    raise ValueError(
      f"{what}: the tree's containers differ from those of the parameters; "
      "make it with jax.tree.map over the parameters"
    )
  for (path, leaf), (_, param) in zip(ours, theirs, strict=True):
    if np.shape(leaf) not in ((), np.shape(param)):
      raise ValueError(
        f"{what}: leaf {'/'.join(path)!r} has shape {np.shape(leaf)}, its "
        f"parameter {np.shape(param)}; give that shape, or a scalar"
      )
  return [leaf for _, leaf in ours]


def _bare(tree: Params) -> Any:
  """The structure of a tree without the NNX variables around its leaves."""
  nnx = sys.modules.get("flax.nnx")  # a tree has some only where it is imported
  variables = nnx.Variable if nnx else ()
  return jax.tree.structure(
    tree, is_leaf=lambda node: isinstance(node, variables)
  )
