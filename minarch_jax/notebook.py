"""The line of a study in a notebook, without files."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np
import polars as pl

from minarch_jax import architectures as architectures_lib
from minarch_jax import study
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.config import Config
from minarch_jax.engine import packs as packs_lib
from minarch_jax.engine.packs import Trained
from minarch_jax.engine.session import Session
from minarch_jax.stages import own_recipes, populations, setup
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages.populations import Population
from minarch_jax.types import Batch, Dataset, Params


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
  tx: Any = None,
  loss: Callable[[Any, Any], Any] | None = None,
  init: str | Callable[[jax.Array, Params], Params] = Config.init,
  start: Population | None = None,
  **overrides: Any,
) -> Population:
  """Trains every architecture with every seed, packed into few programs.

  Networks of several architectures share programs, inside wider parents. With a
  `tx` each architecture has its own, since not every optimizer is blind to
  padding.

  Args:
    architectures: or their texts, as "dnn:30-30".
    dataset: as `load` returns it.
    num_seeds: seeds of each architecture, from `first_seed` on.
    num_epochs: epochs of training, those of `start` included.
    tx: an optax optimizer, with its own rate, or a function of the learning
      rate that returns one, as `optax.lion`; the rate follows `schedule`.
    loss: `loss(logits [B, classes], y [B])`, per image or their mean; in the
      curves too.
    init: a name of INITS, or `init(key, shapes) -> params` of one network.
    start: trains these networks on, up to `num_epochs`. With
      schedule="constant" that is training straight through.
    **overrides: any other field of Config; `learning_rate` may list several, to
      train all networks with each, see `Population.best`.

  Raises:
    ConfigError: a value that cannot be used.
    ValueError: no architecture, or one that does not fit the images; images
      or labels that nothing can be learnt from; a tx, loss or init that no
      step can be taken with.
  """
  if not architectures:
    raise ValueError(
      "architectures is empty; name at least one, or take a grid: "
      "ma.grid('small', 'dnn', dataset.input_shape, dataset.num_classes)"
    )
  _check(dataset)
  rate = overrides.pop("learning_rate", Config.learning_rate)
  rates = own_recipes.learning_rates(rate, tx, overrides)
  named = {"init": init} if isinstance(init, str) else {}
  overrides |= {"num_seeds": num_seeds, "num_epochs": num_epochs, **named}
  config = Config().replace(**overrides)
  configs = [config.replace(learning_rate=rate) for rate in rates]
  problem = Problem.of(dataset)
  members = architectures_lib.select(
    [str(a) for a in architectures], config.grid, config.families, problem
  )
  own = own_recipes.own_recipe(tx, loss, None if named else init)
  for member in members:
    own_recipes.own_step(own, member, problem)
  if start is not None:
    populations.check_start(start, members, configs, dataset)
  session = setup.open_session(configs[0], dataset)
  session = dataclasses.replace(session, own=own)
  found = []
  for number, each in enumerate(configs):
    now = dataclasses.replace(session, config=each)  # the same programs
    begun = start.trained[number] if start else None
    found.append(_train(now, members, begun))
  several = own_recipes.is_list(rate)
  return _population(session, members, found, rates if several else None)


def _train(
  session: Session,
  members: Sequence[Architecture],
  begun: Sequence[Trained] | None,
) -> list[Trained]:
  """Trains all networks with one learning rate."""
  if begun is None:
    todo = packs_lib.plan(session, members, list(session.config.seeds))
    return study.train_packs(session, todo, with_state=True)
  keepers = {each.pack: populations.From(each.kept) for each in begun}
  return study.train_packs(
    session, list(keepers), keepers.__getitem__, with_state=True
  )


def _population(
  session: Session,
  members: list[Architecture],
  found: list[list[Trained]],
  rates: list[float] | None,
) -> Population:
  """Puts together what was trained, by learning rates."""
  tables = []
  for make in (make_rows.curves, make_rows.networks):
    frames = []
    for number, parts in enumerate(found):
      frame = pl.concat(make(session, "", each) for each in parts)
      if rates is not None:
        frame = frame.with_columns(learning_rate=pl.lit(rates[number]))
      frames.append(frame)
    tables.append(pl.concat(frames))
  curves, networks = tables
  if session.own.init is not None:
    networks = networks.with_columns(init=pl.lit("own"))
  by_rate = [_by_architecture(members, parts) for parts in found]
  if rates is None:
    params = by_rate[0]
  else:
    params = [
      jax.tree.map(lambda *p: np.stack(p), *trees)
      for trees in zip(*by_rate, strict=True)
    ]
  return Population(
    members,
    params,
    curves.sort("architecture", "seed", "epoch", maintain_order=True),
    networks.sort(
      *("family", "params", "architecture", "seed"), maintain_order=True
    ),
    rates,
    session.config,
    session.dataset.fingerprint,
    found,
  )


def _by_architecture(
  members: list[Architecture], parts: list[Trained]
) -> list[Params]:
  """Joins the seeds of each architecture, whichever packs they were in."""
  params: dict[Architecture, list[Params]] = {}
  for trained in parts:
    for a, tree in zip(trained.pack.architectures, trained.params, strict=True):
      params.setdefault(a, []).append(tree)
  return [
    jax.tree.map(lambda *p: np.concatenate(p), *params[a]) for a in members
  ]
