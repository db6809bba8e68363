"""Saves and restores the parameters of packs with orbax.

One checkpoint holds one pack: its stacked parameters at the members' true
shapes. What a checkpoint contains is known from its name alone: the id of the
part file written after it.
"""

from collections.abc import Sequence
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp

from minarch_jax.types import Params


def path(out: str, id: str) -> str:
  """Names the directory of a pack's checkpoint."""
  return os.path.abspath(os.path.join(out, "checkpoints", id))


def save(out: str, id: str, params: Sequence[Params]) -> None:
  """Saves one tree per architecture (numpy, leading seed axis), atomically."""
  target = path(out, id)
  if os.path.exists(target):
    shutil.rmtree(target)  # left by a run that ended before its part file
  tree = {str(i): tree for i, tree in enumerate(params)}
  with _checkpointer() as checkpointer:
    checkpointer.save(
      target, ocp.args.StandardSave(jax.tree.map(np.asarray, tree))
    )


def _checkpointer() -> ocp.Checkpointer:
  # Synchronous: an asynchronous save to a full disk fails minutes later.
  return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def load(out: str, id: str) -> list[Params]:
  """Restores what `save` saved, as numpy arrays.

  Raises:
    FileNotFoundError: there is no such checkpoint.
  """
  target = path(out, id)
  if not os.path.isdir(target):
    raise FileNotFoundError(
      f"{target} is missing: the tables are there but not the trained "
      "parameters; remove records/networks or copy the checkpoints too"
    )
  with _checkpointer() as checkpointer:
    structure = checkpointer.metadata(target).item_metadata.tree
    abstract = jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), structure
    )
    tree = checkpointer.restore(target, args=ocp.args.StandardRestore(abstract))
  tree = jax.tree.map(np.asarray, tree)
  return [tree[str(i)] for i in range(len(tree))]
