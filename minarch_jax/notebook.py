"""The population of a notebook: train, look, measure, without files."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax import (
  architectures as architectures_lib,
)
from minarch_jax import (
  evaluation,
  models,
  packs,
  planning,
  population,
  records,
  tabulate,
)
from minarch_jax.architectures import Architecture
from minarch_jax.config import Config
from minarch_jax.types import Batch, Dataset, Params


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
    ValueError: an architecture that does not fit the images.
  """
  config = Config().replace(
    num_seeds=num_seeds, num_epochs=num_epochs, **overrides
  )
  members = architectures_lib.select(
    [str(a) for a in architectures],
    config.grid,
    config.families,
    dataset.input_shape,
    dataset.num_classes,
  )
  population.use_cores()
  population.use_cache(config.compilation_cache_dir)
  session = packs.open_session(config, dataset)
  plan = planning.plan(
    members,
    list(config.seeds),
    session.work,
    devices=jax.local_device_count(),
    memory_limit=config.memory_limit * 2**30,
  )
  params: dict[Architecture, list[Params]] = {}
  curves, networks = [], []
  for pack in plan:
    trained = packs.train(session, pack)
    for architecture, tree in zip(
      pack.architectures, trained.params, strict=True
    ):
      params.setdefault(architecture, []).append(tree)
    curves.append(_typed("curves", tabulate.curves(session, "", trained)))
    networks.append(_typed("networks", tabulate.networks(session, "", trained)))
  whole = [
    jax.tree.map(lambda *p: np.concatenate(p), *params[a]) for a in members
  ]
  return Population(
    members,
    whole,
    pl.concat(curves).sort("architecture", "seed", "epoch"),
    pl.concat(networks).sort("family", "params", "architecture", "seed"),
  )


def _typed(table: str, frame: pl.DataFrame) -> pl.DataFrame:
  """Gives a table the columns that its part files have."""
  schema = records.SCHEMAS[table]
  return frame.select(pl.col(c).cast(t) for c, t in schema.items())


def accuracy(
  architecture: Architecture, params: Params, batch: Batch
) -> jax.Array:
  """Returns the accuracy of each seed's network on a batch, float32 [S].

  Args:
    architecture: what the parameters belong to.
    params: a tree with a leading seed axis.
    batch: x [N, H, W, C], y [N].
  """
  num_classes = params["output"]["bias"].shape[-1]
  shape = batch.x.shape[1:]
  model = models.make_model(
    architecture, (shape[0], shape[1], shape[2]), num_classes
  )
  return evaluation.accuracy(model, params, batch)
