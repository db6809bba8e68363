"""The population of a notebook: train, look, measure, without files."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax import architectures as architectures_lib
from minarch_jax import models, records, study
from minarch_jax.architectures import Architecture, Problem, Shape
from minarch_jax.config import Config
from minarch_jax.engine import evaluation
from minarch_jax.stages import rows as make_rows
from minarch_jax.types import Batch, Dataset, Params, QTensor

CHUNK = 512  # images scored at a time


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
  session, packs = study.train_in_memory(config, dataset, members)
  params: dict[Architecture, list[Params]] = {}
  for trained in packs:
    for a, tree in zip(trained.pack.architectures, trained.params, strict=True):
      params.setdefault(a, []).append(tree)
  curves, networks = (
    pl.concat(records.typed(table, make(session, "", each)) for each in packs)
    for table, make in (
      ("curves", make_rows.curves),
      ("networks", make_rows.networks),
    )
  )
  return Population(
    members,
    [jax.tree.map(lambda *p: np.concatenate(p), *params[a]) for a in members],
    curves.sort("architecture", "seed", "epoch"),
    networks.sort("family", "params", "architecture", "seed"),
  )


def accuracy(
  architecture: Architecture, params: Params, batch: Batch
) -> jax.Array:
  """Returns the accuracy of each seed's network on a batch, float32 [S].

  Args:
    architecture: what the parameters belong to.
    params: a tree with a leading seed axis.
    batch: x [N, H, W, C], y [N].

  Raises:
    ValueError: an empty batch, or parameters of another architecture, of one
      network alone, or quantized.
  """
  if not len(batch.y):
    raise ValueError("accuracy of an empty batch; pass some images")
  height, width, channels = batch.x.shape[1:]
  shape = (height, width, channels)
  score = _scorer(architecture, _problem(architecture, params, shape))
  chunks = evaluation.chunk(batch, min(CHUNK, len(batch.y)))
  return score(params, chunks) / len(batch.y)


def _problem(
  architecture: Architecture, params: Params, input_shape: Shape
) -> Problem:
  """Completes a problem; ValueError unless all leaves fit [S, ...]."""
  flat = models.flatten(params)
  num_classes = (np.shape(flat.get(("output", "bias"), 0)) or (0,))[-1]
  problem = Problem(input_shape, num_classes)
  spec = architecture.spec(problem)
  for leaf in spec.leaves:
    name, value = leaf.name, flat.get(leaf.path)
    if value is None or isinstance(value, QTensor):
      found = "is quantized; dequantize it" if value else "is missing"
      raise ValueError(f"leaf {name!r} of {architecture} {found}")
    if np.shape(value)[1:] != spec.shape(leaf):
      wanted = ", ".join(["seeds", *map(str, spec.shape(leaf))])
      raise ValueError(
        f"leaf {name!r} has shape {np.shape(value)}; {architecture} on images "
        f"{tuple(input_shape)} has ({wanted}): every leaf needs a leading axis "
        "of seeds"
      )
  return problem


@functools.lru_cache(maxsize=32)
def _scorer(
  architecture: Architecture, problem: Problem
) -> Callable[[Params, evaluation.Chunks], jax.Array]:
  """Compiles the correct answers of each seed, once for all later calls."""
  model = models.make_model(architecture, problem)
  totals = evaluation.make_totals(model.apply)

  def correct(params: Params, chunks: evaluation.Chunks) -> jax.Array:
    def one(params):
      # The model knows its own sizes.
      sizes: Any = None
      return totals(params, sizes, chunks, 0, chunks.y.shape[0]).correct.sum()

    return jax.lax.map(one, params)

  return jax.jit(correct)
