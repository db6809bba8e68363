"""Where trained networks are kept, and how they come back."""

from collections.abc import Sequence

import jax
import numpy as np
import polars as pl

from minarch_jax import records
from minarch_jax.architectures import Architecture
from minarch_jax.config import ConfigError
from minarch_jax.engine.session import Session
from minarch_jax.stages import checkpoints, setup
from minarch_jax.types import Params

Key = tuple[str, int]  # architecture and seed


def stored(out: str, recipe: str) -> dict[Key, tuple[str, int, int]]:
  """Says where the networks of a training recipe are.

  A network is there once its row is: the part of `networks` is written last.

  Returns:
    Of each network its checkpoint's id, and its places among the checkpoint's
    architectures and among that architecture's seeds.
  """
  found = {}
  for id, rows in records.parts(out, "networks"):
    rows = rows.filter(pl.col("run_id") == recipe)
    names = rows["architecture"].unique(maintain_order=True).to_list()
    for i, name in enumerate(names):
      seeds = rows.filter(pl.col("architecture") == name)["seed"].to_list()
      found |= {(name, seed): (id, i, j) for j, seed in enumerate(seeds)}
  return found


def trained(
  session: Session, out: str, networks: pl.DataFrame
) -> list[Architecture]:
  """Lists the recorded architectures of a session's training recipe, by name.

  Raises:
    ConfigError: there are none.
  """
  rows = networks.filter(pl.col("run_id") == setup.recipe_id(session))
  if rows.is_empty():
    raise ConfigError(
      f"{out} holds no network trained with these flags; give the training "
      "flags of its study.json"
    )
  return list(map(Architecture.parse, rows["architecture"].unique().sort()))


def load_params(
  out: str, recipe: str, members: Sequence[Architecture], seeds: Sequence[int]
) -> list[Params]:
  """Restores trained parameters: a tree per architecture, leading axis S.

  Raises:
    ConfigError: a network is not in the results directory.
  """
  where = stored(out, recipe)
  opened: dict[str, list[Params]] = {}  # each checkpoint is read once

  def one(architecture: Architecture, seed: int) -> Params:
    key = (str(architecture), seed)
    if key not in where:
      raise ConfigError(
        f"{architecture} with seed {seed} is not trained in {out} (with these "
        "training flags); run `python -m experiments.sweep` with the same "
        "flags first"
      )
    id, member, position = where[key]
    if id not in opened:
      opened[id] = checkpoints.load(out, id)
    return jax.tree.map(lambda leaf: leaf[position], opened[id][member])

  return [
    jax.tree.map(lambda *s: np.stack(s), *(one(a, seed) for seed in seeds))
    for a in members
  ]
