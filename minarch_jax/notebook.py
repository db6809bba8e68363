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


def _check(dataset: Dataset) -> None:
  """Raises ValueError for images or labels that would train to chance."""
  splits = {
    name: getattr(dataset, name) for name in ("train", "validation", "test")
  }
  for name, split in splits.items():
    where = f"{name} split of {dataset.name!r}"
    x, y = np.asarray(split.x), np.asarray(split.y)
    if x.ndim != 4:
      raise ValueError(
        f"{where}: x has shape {x.shape} where images [N, H, W, C] are needed; "
        "features [N, D] become images of one row by x[:, None, :, None]"
      )
    if x.shape[1:] != np.shape(dataset.train.x)[1:]:
      raise ValueError(
        f"{where}: images of shape {x.shape[1:]}, those of training have "
        f"{np.shape(dataset.train.x)[1:]}; bring them to one shape"
      )
    if y.ndim != 1 or y.dtype.kind not in "iu":
      raise ValueError(
        f"{where}: labels are {y.dtype} of shape {y.shape}; give class "
        "indices, int32 [N] (of one-hot rows: y.argmax(1))"
      )
    if len(x) != len(y) or not len(x):
      raise ValueError(
        f"{where}: {len(x)} images and {len(y)} labels; give one label for "
        "each image, and at least one"
      )
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    if bad.any():
      raise ValueError(
        f"{where}: {bad.sum()} of {len(x)} images are NaN or infinite, the "
        f"first at {bad.argmax()}; leave them out or mend the normalisation"
      )
  _check_classes(dataset, splits)


def _check_classes(dataset: Dataset, splits: dict[str, Batch]) -> None:
  """Raises ValueError where labels and the number of classes disagree."""
  classes = dataset.num_classes
  lowest, highest = (
    {name: int(most(split.y)) for name, split in splits.items()}
    for most in (np.min, np.max)
  )
  needed = max(highest.values()) + 1
  for name in splits:
    low, high = lowest[name], highest[name]
    if low < 0 or high >= classes:
      raise ValueError(
        f"{name} split of {dataset.name!r}: labels reach from {low} to {high}, "
        f"outside the {classes} classes 0 to {classes - 1}; number classes "
        f"from 0, or say num_classes={needed}"
      )
  if needed < classes or classes < 2:
    raise ValueError(
      f"{dataset.name!r}: num_classes={classes}, but the largest label of all "
      f"splits is {needed - 1}; say num_classes={max(needed, 2)}"
    )


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
    ValueError: no architecture, or one that does not fit the images; images
      or labels that nothing can be learnt from.
  """
  if not architectures:
    raise ValueError(
      "architectures is empty; name at least one, or take a grid: "
      "ma.grid('small', 'dnn', dataset.input_shape, dataset.num_classes)"
    )
  _check(dataset)
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
