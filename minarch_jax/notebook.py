"""The population of a notebook: train, look, measure, without files."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax import architectures as architectures_lib
from minarch_jax import study
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup
from minarch_jax.types import Dataset, Params


@dataclasses.dataclass(frozen=True)
class Population:
  """Trained networks.

  Attributes:
    architectures: as given.
    params: for each architecture a tree of its true shapes with a leading seed
      axis, on the host.
    curves: the table of records.SCHEMAS["curves"].
    networks: the table of records.SCHEMAS["networks"].
  """

  architectures: list[Architecture]
  params: list[Params]
  curves: pl.DataFrame
  networks: pl.DataFrame


def train(
  architectures: Sequence[Architecture | str],
  dataset: Dataset,
  *,
  num_seeds: int = Config.num_seeds,
  num_epochs: int = Config.num_epochs,
  **overrides: Any,
) -> Population:
  """Trains every architecture with every seed, packed into few programs.

  Args:
    architectures: or their texts, as "dnn:30-30".
    dataset: as `load` returns it.
    num_seeds: seeds of each architecture, from `first_seed` on.
    num_epochs: epochs of training.
    **overrides: any other field of Config.

  Raises:
    ConfigError: a value that cannot be used.
    ValueError: no architecture, or one that does not fit the images.
  """
  if not architectures:
    raise ValueError(
      "architectures is empty; name at least one, or take a grid: "
      "ma.grid('small', 'dnn', dataset.input_shape, dataset.num_classes)"
    )
  config = Config().replace(
    num_seeds=num_seeds, num_epochs=num_epochs, **overrides
  )
  members = architectures_lib.select(
    [str(a) for a in architectures],
    config.grid,
    config.families,
    Problem.of(dataset),
  )
  session = setup.open_session(config, dataset)
  packs = study.train_in_memory(session, members)
  params: dict[Architecture, list[Params]] = {}
  for trained in packs:
    for a, tree in zip(trained.pack.architectures, trained.params, strict=True):
      params.setdefault(a, []).append(tree)
  curves, networks = (
    pl.concat(make(session, "", each) for each in packs)
    for make in (make_rows.curves, make_rows.networks)
  )
  return Population(
    members,
    [jax.tree.map(lambda *p: np.concatenate(p), *params[a]) for a in members],
    curves.sort("architecture", "seed", "epoch"),
    networks.sort("family", "params", "architecture", "seed"),
  )
